"""Errors of predicted joints and vertices in millimetres: MPJPE, PA-MPJPE and MPVPE.

Inputs are metres; leading dimensions are batches and broadcast against each other. PA-MPJPE first aligns a prediction
by the similarity transform (scale, rotation, translation; never a reflection) that brings it closest to the truth in
squared distance (Umeyama, "Least-squares estimation of transformation parameters", PAMI 1991).
"""

from __future__ import annotations

import torch
from torch import Tensor

MILLIMETRES = 1000.0


def mpjpe(pred: Tensor, true: Tensor, root: tuple[int, ...] | None = None, visible: Tensor | None = None) -> Tensor:
    """Return the mean distance of the joints, [...] mm.

    pred, true: [..., J, 3] metres. root: joints whose midpoint is moved to the origin in both (HIPS of
    prefkit.mesh.body for JOINT_NAMES), None to compare positions as they are. visible: [..., J], 1 for the joints
    that count, else 0; the result is NaN if no joint counts.
    """
    if root is not None:
        pred, true = centred(pred, root), centred(true, root)
    return _mean(pred, true, visible)


def pa_mpjpe(pred: Tensor, true: Tensor, visible: Tensor | None = None) -> Tensor:
    """Return `mpjpe` after the best similarity transform of each prediction. `visible` also restricts the alignment."""
    return _mean(procrustes(pred, true, visible), true, visible)


def mpvpe(pred: Tensor, true: Tensor, pred_root: Tensor | None = None, true_root: Tensor | None = None) -> Tensor:
    """Return the mean distance of the vertices, [...] mm.

    pred, true: [..., V, 3] metres, equal topology. pred_root, true_root: [..., 3], the points (such as the midpoint of
    the hips) that are moved to the origin; None to compare positions as they are.
    """
    pred = pred if pred_root is None else pred - pred_root.unsqueeze(-2)
    true = true if true_root is None else true - true_root.unsqueeze(-2)
    return _mean(pred, true, None)


def centred(points: Tensor, root: tuple[int, ...]) -> Tensor:
    """Return points [..., J, 3] with the midpoint of the root joints at the origin."""
    return points - points[..., list(root), :].mean(-2, keepdim=True)


def procrustes(pred: Tensor, true: Tensor, weights: Tensor | None = None) -> Tensor:
    """Return predictions [..., J, 3] after the similarity transform that brings each closest to the truth.

    weights: [..., J] non-negative weights of the squared distances, None for equal ones. A prediction whose points
    coincide is moved to the truth's centre. Points with a weight of 0 are transformed along with the others.
    """
    pred, true = torch.broadcast_tensors(pred, true)
    weight = torch.ones_like(pred[..., :1]) if weights is None else weights.to(pred.dtype).unsqueeze(-1)
    total = weight.sum(-2, keepdim=True)
    centre, target = (weight * pred).sum(-2, keepdim=True) / total, (weight * true).sum(-2, keepdim=True) / total
    moved = pred - centre
    covariance = (true - target).transpose(-1, -2) @ (weight * moved)
    left, values, right = torch.linalg.svd(torch.nan_to_num(covariance))  # NaN: all weights are 0
    sign = torch.ones_like(values)
    sign[..., 2] = torch.sign(torch.linalg.det(left @ right))  # flips the last axis, so that the body is not mirrored
    size = (weight * moved.square()).sum((-1, -2)).clamp_min(torch.finfo(pred.dtype).tiny)
    scale = (values * sign).sum(-1) / size
    rotation = (left * sign.unsqueeze(-2)) @ right
    return scale[..., None, None] * (moved @ rotation.transpose(-1, -2)) + target


def _mean(pred: Tensor, true: Tensor, visible: Tensor | None) -> Tensor:
    distance = (pred - true).norm(dim=-1) * MILLIMETRES
    if visible is None:
        return distance.mean(-1)
    visible = visible.to(distance.dtype)
    return (distance * visible).sum(-1) / visible.expand_as(distance).sum(-1)
