"""Rotation representations: axis-angle, 6D, quaternion and matrix, converted to and from 3x3 matrices.

Sources: Rodrigues' formula for axis-angle; Zhou et al., "On the continuity of rotation representations in neural
networks" (CVPR 2019) for 6D. All functions take any leading dimensions, keep dtype and device, and are differentiable.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import normalize

from prefkit.errors import UsageError

#: representation -> its last dimensions
SIZES: dict[str, tuple[int, ...]] = {"axis_angle": (3,), "6d": (6,), "quaternion": (4,), "matrix": (3, 3)}


def to_matrix(values: Tensor, repr: str) -> Tensor:
    """Return rotation matrices [..., 3, 3].

    values and repr: [..., 3] "axis_angle" (radians times the unit axis), [..., 6] "6d" (the first two columns, one
    after the other; made orthonormal by Gram-Schmidt), [..., 4] "quaternion" (w, x, y, z; any length but 0) or
    [..., 3, 3] "matrix" (returned unchanged). Raises UsageError for an unknown repr or wrong last dimensions.
    """
    _check(values, repr)
    return _TO[repr](values)


def from_matrix(matrices: Tensor, repr: str) -> Tensor:
    """Convert rotation matrices [..., 3, 3] to a representation of `to_matrix`.

    Quaternions have w >= 0, so axis-angle vectors are at most pi long. Raises UsageError as `to_matrix` does.
    """
    _check(matrices, "matrix")
    size_of(repr)
    return _FROM[repr](matrices)


def size_of(repr: str) -> tuple[int, ...]:
    """Return the last dimensions of a representation. Raises UsageError if it is unknown."""
    if repr not in SIZES:
        raise UsageError(f"{repr!r} is not a rotation representation; use one of {', '.join(SIZES)}")
    return SIZES[repr]


def _check(values: Tensor, repr: str) -> None:
    size = size_of(repr)
    if tuple(values.shape[-len(size) :]) != size:
        raise UsageError(f"{repr} rotations must have the last dimensions {list(size)}, not {list(values.shape)}")


def _from_axis_angle(vectors: Tensor) -> Tensor:
    """Return R = 1 + sin(a)/a K + (1 - cos(a))/a^2 K^2, with both factors written as sinc, which is smooth at a = 0."""
    angle = vectors.norm(dim=-1, keepdim=True).unsqueeze(-1) / torch.pi
    x, y, z = vectors.unbind(-1)
    zero = torch.zeros_like(x)
    cross = torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], -1).unflatten(-1, (3, 3))
    identity = torch.eye(3, dtype=vectors.dtype, device=vectors.device)
    return identity + torch.sinc(angle) * cross + 0.5 * torch.sinc(angle / 2) ** 2 * (cross @ cross)


def _from_6d(values: Tensor) -> Tensor:
    first = normalize(values[..., :3], dim=-1)
    rest = values[..., 3:]
    second = normalize(rest - (first * rest).sum(-1, keepdim=True) * first, dim=-1)
    return torch.stack([first, second, torch.linalg.cross(first, second)], -1)


def _to_6d(matrices: Tensor) -> Tensor:
    return matrices[..., :2].transpose(-1, -2).flatten(-2)


def _from_quaternion(values: Tensor) -> Tensor:
    w, x, y, z = normalize(values, dim=-1).unbind(-1)
    entries = [
        1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y),
        2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x),
        2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y),
    ]  # fmt: skip
    return torch.stack(entries, -1).unflatten(-1, (3, 3))


def _to_quaternion(matrices: Tensor) -> Tensor:
    """Return q from a row of 4 q q^T, whose entries are sums of R's entries: the row with the largest diagonal entry.

    That row is q times 4 max|q_i| >= 2, so normalising it never divides by a small number.
    """
    (a, b, c), (d, e, f), (g, h, i) = (row.unbind(-1) for row in matrices.unbind(-2))
    outer = torch.stack([
        1 + a + e + i, h - f, c - g, d - b,
        h - f, 1 + a - e - i, b + d, c + g,
        c - g, b + d, 1 - a + e - i, f + h,
        d - b, c + g, f + h, 1 - a - e + i,
    ], -1).unflatten(-1, (4, 4))  # fmt: skip
    largest = outer.diagonal(dim1=-2, dim2=-1).argmax(-1)
    row = torch.take_along_dim(outer, largest[..., None, None], -2).squeeze(-2)
    return normalize(torch.where(row[..., :1] < 0, -row, row), dim=-1)


def _to_axis_angle(matrices: Tensor) -> Tensor:
    quaternion = _to_quaternion(matrices)
    w, axis = quaternion[..., :1], quaternion[..., 1:]
    sine = axis.norm(dim=-1, keepdim=True)
    small = sine < 1e-6  # angle / sin(angle / 2) is then 2 to within 1e-12
    safe = torch.where(small, torch.ones_like(sine), sine)
    return axis * torch.where(small, torch.full_like(sine, 2.0), 2 * torch.atan2(safe, w) / safe)


_TO: dict[str, Callable[[Tensor], Tensor]] = {
    "axis_angle": _from_axis_angle,
    "6d": _from_6d,
    "quaternion": _from_quaternion,
    "matrix": lambda values: values,
}
_FROM: dict[str, Callable[[Tensor], Tensor]] = {
    "axis_angle": _to_axis_angle,
    "6d": _to_6d,
    "quaternion": _to_quaternion,
    "matrix": lambda values: values,
}
