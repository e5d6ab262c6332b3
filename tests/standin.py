"""A stand-in for CUDA: tensors that say `cuda:0`, are computed on the CPU, and refuse what a GPU refuses.

    standin.install()       before anything is loaded, and for good: it patches torch. Use a process of its own.
    standin.run_out(at)     inside, operations for which at(name, shape) is true raise torch.OutOfMemoryError

Refused: tensors of two devices in one operation (but for numbers and indices that live on the CPU), a CPU generator for a
tensor on the card, pinning a tensor that is on the card, and `.numpy()` of one. Not seen: kernels, real bfloat16, memory,
streams, races of copies, NCCL. Where C++ asks a tensor for its device it sees the CPU, and the two places where that
matters are patched. Private names of torch are used, so it is for the versions in TESTED.

All tests of models, score, train and online that ask for no device run on it:

    PREFKIT_TEST_DEVICE=cuda pytest -n 0 tests/models tests/score tests/train tests/train/online
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

TESTED = ("2.14",)
CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)
MEMORY = 8 << 30  # bytes of the card
T, aten = torch.Tensor, torch.ops.aten
COPIES = {aten.copy_, aten._to_copy, aten._foreach_copy_}
INDEXED = {aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_, aten._unsafe_index}
#: what torch.cuda says, by name; what is called
ANSWERS: dict[str, Any] = {
    **dict.fromkeys(
        ["set_device", "synchronize", "empty_cache", "reset_peak_memory_stats", "ipc_collect", "_lazy_init", "init"]
    ),
    **dict.fromkeys(["manual_seed", "manual_seed_all", "set_rng_state", "reset_accumulated_memory_stats"]),
    **{"is_available": True, "is_initialized": True, "is_bf16_supported": True, "device_count": 1, "current_device": 0},
    **dict.fromkeys(["max_memory_allocated", "memory_allocated", "memory_reserved"], 1 << 20),
    **{"mem_get_info": (MEMORY - (1 << 28), MEMORY), "get_device_capability": (9, 0), "get_device_name": "stand-in"},
}
CALLS: list[str] = []  # of ANSWERS, in order
_full: Callable[[str, tuple[int, ...]], bool] | None = None


def tested() -> bool:
    return torch.__version__.startswith(TESTED)


@contextlib.contextmanager
def run_out(at: Callable[[str, tuple[int, ...]], bool]) -> Any:
    """Inside, operations on the card for which at(name, shape of the first tensor) raise torch.OutOfMemoryError."""
    global _full
    _full = at
    try:
        yield
    finally:
        _full = None


def on_card(device: Any) -> bool:
    return device is not None and (isinstance(device, int) or torch.device(device).type == "cuda")


def plain(tensor: Any) -> Any:
    """The tensor on the CPU that holds the numbers."""
    if not isinstance(tensor, Cuda):
        return tensor
    with torch._C.DisableTorchFunction(), torch._C._DisableTorchDispatch():
        return T._make_subclass(T, tensor, False)


def card(tensor: Any) -> Any:
    """The same numbers under another device."""
    if isinstance(tensor, Cuda) or not isinstance(tensor, T):
        return tensor
    return T._make_subclass(Cuda, tensor.detach() if tensor.requires_grad else tensor, False)


class Cuda(T):
    """A tensor on the card."""

    __torch_function__ = torch._C._disabled_torch_function_impl
    device = property(lambda self: CUDA)
    is_cuda = property(lambda self: True)
    is_cpu = property(lambda self: False)

    def __new__(cls, tensor: Any, requires_grad: bool = False) -> Any:
        """A parameter: accelerate's hooks make a new one of the old one's type, which is this for those on the card."""
        return torch.nn.Parameter(tensor, requires_grad)

    def get_device(self) -> int:
        return 0

    def __repr__(self, **_: Any) -> str:
        return f"Cuda({plain(self)!r})"

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        if id(self) not in memo:
            new = card(plain(self).clone())
            if getattr(self, "_is_param", False):
                new = torch.nn.Parameter(new, self.requires_grad)
            memo[id(self)] = new if new.requires_grad == self.requires_grad else new.requires_grad_()
        return memo[id(self)]

    def __reduce_ex__(self, protocol: int) -> Any:
        return card, (plain(self),)

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        flat, spec = tree_flatten((args, kwargs or {}))
        tensors = [x for x in flat if isinstance(x, T)]
        _refuse_mixture(func, args, tensors)
        _refuse_when_full(func, tensors)
        real = [plain(x) if isinstance(x, Cuda) else CPU if _is_cuda_device(x) else x for x in flat]
        given, named = tree_unflatten(real, spec)
        out = func(*given, **named)
        if func.overloadpacket is aten.copy_:
            return args[0]
        back = {id(r): x for r, x in zip(real, flat, strict=True) if isinstance(x, T)}
        return tree_map(lambda t: back[id(t)] if id(t) in back else t if _is_meta(t) else card(t), out)


def _is_cuda_device(value: Any) -> bool:
    return isinstance(value, torch.device) and value.type == "cuda"


def _is_meta(value: Any) -> bool:
    return isinstance(value, T) and value.is_meta


def _refuse_mixture(func: Any, args: Any, tensors: list[Any]) -> None:
    name = func.overloadpacket
    numbers = torch.Tag.pointwise in func.tags
    bad = [x for x in tensors if not isinstance(x, Cuda) and not (numbers and x.dim() == 0)]
    if not bad or name in COPIES:
        return
    if name in INDEXED:
        bad = [x for x in bad if x is args[0] or (len(args) > 2 and x is args[2] and x.dim())]
    if torch._C._current_graph_task_id() != -1:  # autograd's zeros for gradients that are not there: C++ makes them
        bad = [x for x in bad if bool(x.count_nonzero())]
    if bad:
        raise RuntimeError("Expected all tensors to be on the same device, but found at least two devices, cuda:0 and cpu! "
                           f"({func}; on the cpu: {[tuple(x.shape) for x in bad]})")  # fmt: skip


def _refuse_when_full(func: Any, tensors: list[Any]) -> None:
    if _full is not None:
        shape = tuple(tensors[0].shape) if tensors else ()
        if _full(func.overloadpacket._qualified_op_name.split("::")[-1], shape):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate more than the stand-in has")


class _Over(torch.autograd.Function):
    """A copy to the other device; gradients come back."""

    @staticmethod
    def forward(ctx: Any, tensor: Any) -> Any:
        ctx.back = card if isinstance(tensor, Cuda) else plain
        return plain(tensor.detach()).clone() if isinstance(tensor, Cuda) else card(tensor.detach().clone())

    @staticmethod
    def backward(ctx: Any, gradient: Any) -> Any:
        return ctx.back(gradient)


def move(tensor: Any, to_card: bool) -> Any:
    if isinstance(tensor, Cuda) == to_card:
        return tensor
    if tensor.requires_grad and torch.is_grad_enabled():
        return _Over.apply(tensor)
    return card(tensor.detach().clone()) if to_card else plain(tensor).clone()


class Mode(TorchFunctionMode):
    """What C++ would do by a tensor's device: factories, `.to`, pinning, numpy."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        own = args[0] if args else None
        if func in (T.to, T.cuda, T.cpu):
            return _to(func, own, args[1:], kwargs)
        if func is T.is_pinned:
            return False
        if func is T.device.__get__:
            return CUDA if isinstance(own, Cuda) else func(*args, **kwargs)
        if func is T.is_cuda.__get__:
            return isinstance(own, Cuda)
        if func is T.pin_memory:
            if isinstance(own, Cuda):
                raise RuntimeError("cannot pin 'torch.cuda.FloatTensor' only dense CPU tensors can be pinned")
            return own
        if isinstance(own, Cuda):
            if func in (T.numpy, T.__array__):
                raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() to copy the tensor to host "
                                "memory first.")  # fmt: skip
            if func is T.tolist:
                return plain(own).tolist()
            if func in (torch.tensor, torch.as_tensor, torch.asarray) and kwargs.get("device") is None:
                return own.detach().clone() if func is torch.tensor else own
        if kwargs.get("device") is not None and func.__name__ != "_parse_to":
            return _made(func, args, kwargs)
        return func(*args, **kwargs)


def _to(func: Any, tensor: Any, rest: Any, kwargs: dict[str, Any]) -> Any:
    if func is not T.to:
        return move(tensor, func is T.cuda)
    device, dtype = kwargs.get("device"), kwargs.get("dtype")
    flags = [r for r in rest if isinstance(r, bool)]
    for given in rest:
        if isinstance(given, T):
            device, dtype = given.device, given.dtype
        elif isinstance(given, torch.dtype):
            dtype = given
        elif isinstance(given, (str, torch.device)) or (isinstance(given, int) and not isinstance(given, bool)):
            device = given
    if device is not None and not isinstance(device, int) and torch.device(device).type == "meta":
        return func(tensor, *rest, **kwargs)
    moved = move(tensor, isinstance(tensor, Cuda) if device is None else on_card(device))
    copy = (kwargs.get("copy", flags[1] if len(flags) > 1 else False)) and moved is tensor
    form = {key: kwargs[key] for key in ("memory_format",) if key in kwargs}
    if dtype is None and not form and not copy:
        return moved
    return func(moved, dtype=dtype or moved.dtype, copy=copy, **form)


def _made(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """A factory that was given a device."""
    wanted = on_card(kwargs["device"])
    if not wanted and not any(isinstance(x, Cuda) for x in args):
        return func(*args, **kwargs)
    generator = kwargs.get("generator")
    if wanted and generator is not None and generator.device.type == "cpu":
        raise RuntimeError("Expected a 'cuda' device type for generator but found 'cpu'")
    kwargs["device"], learns = "cpu", kwargs.pop("requires_grad", False)
    with torch._C.DisableTorchFunction():
        out = func(*map(plain, args), **kwargs)
    out = card(out) if wanted else out
    return out.requires_grad_() if learns else out


def install() -> None:
    torch.__future__.set_swap_module_params_on_conversion(True)
    Mode().__enter__()
    run = threading.Thread.run

    def with_mode(self: Any) -> None:  # modes are of one thread
        with Mode():
            run(self)

    threading.Thread.run = with_mode
    _patch_cuda()
    _patch_files()
    _patch_groups()


def _patch_cuda() -> None:
    def answer(name: str, value: Any) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            CALLS.append(name)
            return value

        return call

    for name, value in ANSWERS.items():
        setattr(torch.cuda, name, answer(name, value))
    torch.cuda.get_rng_state = lambda *a, **k: torch.get_rng_state()
    torch.cuda.get_rng_state_all = lambda: [torch.get_rng_state()]
    torch.cuda.set_rng_state_all = torch.cuda.set_rng_state
    torch.cuda.device = lambda *a: contextlib.nullcontext()
    torch.cuda.current_stream = lambda *a, **k: contextlib.nullcontext()

    class Stream:
        is_capturing = staticmethod(lambda: False)
        wait_stream = synchronize = staticmethod(lambda *a: None)

    torch.accelerator.current_stream = lambda *a, **k: Stream()
    torch.accelerator.current_device_index = lambda: 0
    torch.accelerator.is_available = lambda: True
    torch.accelerator.current_accelerator = lambda *a, **k: torch.device("cuda")
    torch.accelerator.device_count = lambda: 1


def _patch_files() -> None:
    import safetensors.torch as st

    load_file, load, save = st.load_file, torch.load, torch.save

    def safe(filename: Any, device: Any = "cpu", **kwargs: Any) -> Any:
        found = load_file(filename, device="cpu", **kwargs)
        return {name: move(tensor, on_card(device)) for name, tensor in found.items()}

    def loaded(f: Any, map_location: Any = None, **kwargs: Any) -> Any:
        out = load(f, map_location="cpu", **kwargs)
        there = map_location is not None and not callable(map_location) and on_card(map_location)
        return tree_map(lambda t: move(t, there) if isinstance(t, T) else t, out)

    st.load_file, torch.load = safe, loaded
    torch.save = lambda obj, *args, **kwargs: save(tree_map(plain, obj), *args, **kwargs)


def _patch_groups() -> None:
    """Optimizers group tensors by the device that C++ sees."""
    group = torch._C._group_tensors_by_device_and_dtype

    def grouped(lists: Any, with_indices: bool = False) -> Any:
        first = next(own for own in lists if own)
        out = {}
        for (device, dtype), (_, index) in group([[plain(t) for t in own] for own in lists], True).items():
            for on in (True, False):
                kept = [i for i in index if isinstance(first[i], Cuda) is on]
                if kept:
                    out[(CUDA if on else device, dtype)] = (
                        [[own[i] for i in kept] if own else [] for own in lists],
                        kept,
                    )
        return out

    torch._C._group_tensors_by_device_and_dtype = grouped
