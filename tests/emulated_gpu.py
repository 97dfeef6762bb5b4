"""A GPU that is none: tensors are computed on the CPU, but say that they are on `cuda:0` (or `cuda:1`), and keep its rules.

Mixing devices raises, as CUDA does. Each wait of the host for the GPU is counted with the line of the project that
caused it: reading a value, a result whose shape depends on values (`nonzero`, a boolean index), a copy from memory that
is not pinned. What it cannot show: speed, memory, the numerics of CUDA's kernels, streams.

    with EmulatedGPU() as gpu:
        model.to("cuda")
        ...
    gpu.waits  # Counter of (what, "file.py:line")
"""

from __future__ import annotations

import contextlib
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from accelerate import PartialState
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

CPU, PINNED = torch.device("cpu"), torch.device("cpu", 0)  # the index marks pinned memory; nobody outside sees it
PACKAGE = str(Path(__file__).parent.parent / "blip_lite")

READS = {"_local_scalar_dense", "is_nonzero", "equal"}  # a value comes to the host
SHAPED_BY_VALUES = {"nonzero", "masked_select", "_unique2", "unique_dim", "unique_consecutive", "bincount", "histc"}
CHECKED = {"multinomial"}  # CUDA looks whether these are probabilities
INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index", "_unsafe_index_put"}
COPIES = {"copy_", "_foreach_copy_"}
DEVICE, IS_CUDA = torch.Tensor.device.__get__, torch.Tensor.is_cuda.__get__  # type: ignore[attr-defined]


class EmulatedGPU:
    """While it is entered, `count` GPUs seem to be there, of 24 GB, 4 of them taken by torch and one by others."""

    def __init__(self, count: int = 2, name: str = "emulated") -> None:
        self.name = name  # of the device
        self.count, self.waits, self.kernels = count, Counter[tuple[str, str]](), 0
        self.storages: dict[int, tuple[StorageWeakRef, torch.device]] = {}
        self.factories = threading.local()
        self.recording: Graph | None = None
        self.stack = contextlib.ExitStack()

    def __enter__(self) -> EmulatedGPU:
        PartialState()  # Accelerate keeps the first device that it finds, also for the tests that follow
        generator, grouped = torch.Generator, torch._C._group_tensors_by_device_and_dtype
        run_thread = threading.Thread.run

        def group(lists: list[Any], with_indices: bool = False) -> dict[Any, Any]:
            """The optimizers' own grouping asks in C++; say what is pretended."""
            found = grouped(lists, with_indices)
            return {
                (self.device_of(tensors[0][0]), dtype): (tensors, at) for (_, dtype), (tensors, at) in found.items()
            }

        def run(thread: threading.Thread) -> None:
            with _Operators(self), _Functions(self):  # each thread has its own modes
                run_thread(thread)

        for patch in (
            mock.patch.object(threading.Thread, "run", run),
            mock.patch.object(torch, "Generator", lambda device="cpu": generator("cpu")),
            mock.patch.object(torch._C, "_group_tensors_by_device_and_dtype", group),
            # asks the driver whether a graph is being captured
            mock.patch.object(torch.optim.Optimizer, "_accelerator_graph_capture_health_check", lambda _: None),
            mock.patch.object(torch.cuda, "is_available", lambda: True),
            mock.patch.object(torch.cuda, "device_count", lambda: self.count),
            mock.patch.object(torch.cuda, "is_bf16_supported", lambda including_emulation=True: True),
            mock.patch.object(torch.cuda, "get_device_name", lambda device=None: self.name),
            mock.patch.object(torch.cuda, "max_memory_allocated", lambda device=None: 3 * 10**9),
            mock.patch.object(torch.cuda, "max_memory_reserved", lambda device=None: 4 * 10**9),
            mock.patch.object(torch.cuda, "memory_reserved", lambda device=None: 4 * 10**9),
            mock.patch.object(torch.cuda, "mem_get_info", lambda device=None: (19 * 10**9, 24 * 10**9)),
            mock.patch.object(torch.cuda, "reset_peak_memory_stats", lambda device=None: None),
            mock.patch.object(torch.cuda, "get_rng_state", lambda device=None: torch.zeros(16, dtype=torch.uint8)),
            mock.patch.object(torch.cuda, "set_rng_state", lambda state, device=None: None),
            mock.patch.object(torch.cuda, "device", lambda device: contextlib.nullcontext()),
            mock.patch.object(torch.cuda, "synchronize", lambda device=None: self.wait("synchronize")),
            mock.patch.object(torch.cuda, "Stream", mock.Mock),
            mock.patch.object(torch.cuda, "current_stream", mock.Mock),
            mock.patch.object(torch.cuda, "stream", lambda stream: contextlib.nullcontext()),
            mock.patch.object(torch.cuda, "CUDAGraph", lambda: Graph(self)),
            mock.patch.object(torch.cuda, "graph", self.record),
        ):
            self.stack.enter_context(patch)
        self.stack.enter_context(_Operators(self))
        self.stack.enter_context(_Functions(self))
        return self

    def __exit__(self, *error: Any) -> None:
        self.stack.__exit__(*error)

    @contextlib.contextmanager
    def record(self, graph: Graph, capture_error_mode: str) -> Iterator[None]:
        """What runs in the block is kept in the graph. A GPU does not run it then; here its outcome is spoilt."""
        self.recording = graph
        yield
        self.recording = None
        for _, _, _, made in graph.operators:
            for tensor in made:
                tensor.fill_(-1 if not tensor.dtype.is_floating_point else torch.nan)

    @property
    def making(self) -> torch.device | None:
        """Where a factory that this thread runs puts its tensor."""
        return getattr(self.factories, "device", None)

    @making.setter
    def making(self, device: torch.device | None) -> None:
        self.factories.device = device

    def place_of(self, tensor: Tensor) -> torch.device:
        """As `device_of`, and `PINNED` for pinned memory. A device belongs to a storage, so views have that of their
        base."""
        if tensor.is_meta:
            return CPU
        storage, place = self.storages.get(tensor.untyped_storage()._cdata, (None, CPU))
        return CPU if storage is None or storage.expired() else place

    def device_of(self, tensor: Tensor) -> torch.device:
        place = self.place_of(tensor)
        return place if place.type == "cuda" else CPU

    def put(self, tensor: Tensor, place: torch.device) -> None:
        storage = tensor.untyped_storage()
        self.storages[storage._cdata] = (StorageWeakRef(storage), place)

    def wait(self, what: str) -> None:
        self.waits[what, line()] += 1

    @contextlib.contextmanager
    def counting(self) -> Iterator[Counter[tuple[str, str]]]:
        """The waits of a block alone."""
        before = self.waits.copy()
        found: Counter[tuple[str, str]] = Counter()
        yield found
        found.update(self.waits - before)


class Graph:
    """As `torch.cuda.CUDAGraph`: operators with the memory that they read and write, run again by `replay`."""

    def __init__(self, gpu: EmulatedGPU) -> None:
        self.gpu = gpu
        self.operators: list[tuple[Any, Any, Any, list[Tensor]]] = []

    def add(self, func: Any, args: Any, kwargs: Any, result: Any) -> None:
        """Of its results those count that are new, neither a view nor what an operator in place changed."""
        given = {t.untyped_storage()._cdata for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        results = [t for t in tree_leaves(result) if isinstance(t, Tensor)]
        self.operators.append((func, args, kwargs, [t for t in results if t.untyped_storage()._cdata not in given]))

    def replay(self) -> None:
        for func, args, kwargs, made in self.operators:
            results = [t for t in tree_leaves(func(*args, **kwargs)) if isinstance(t, Tensor)]
            for tensor, result in zip(made, results if made else [], strict=True):
                self.gpu.put(result, self.gpu.device_of(tensor))
                tensor.copy_(result)


def line() -> str:
    """`file.py:line` of the project, innermost, that is running now."""
    frame: Any = sys._getframe(1)
    while frame:
        if frame.f_code.co_filename.startswith(PACKAGE):
            return f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno}"
        frame = frame.f_back
    return "elsewhere"


def on_cuda(device: Any) -> torch.device | None:
    """`cuda`, `"cuda:1"`, 1, ... -> a device with its index; None for others."""
    if device is None or (not isinstance(device, int) and torch.device(device).type != "cuda"):
        return None
    return torch.device("cuda", (device if isinstance(device, int) else torch.device(device).index) or 0)


class _Functions(TorchFunctionMode):
    """What Python asks of tensors: where they are, to be moved, to be made."""

    def __init__(self, gpu: EmulatedGPU) -> None:
        super().__init__()
        self.gpu = gpu

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        gpu, kwargs = self.gpu, dict(kwargs or {})
        if func == DEVICE:
            return gpu.device_of(args[0])
        if func == IS_CUDA:
            return gpu.device_of(args[0]).type == "cuda"
        if func in (Tensor.tolist, Tensor.numpy) and gpu.device_of(args[0]).type == "cuda":
            if func is Tensor.numpy:
                raise TypeError("can't convert a cuda tensor to numpy")
            gpu.wait("tolist")
        if func is Tensor.pin_memory:
            with torch._C.DisableTorchFunction():
                pinned = args[0].clone()
            gpu.put(pinned, PINNED)
            return pinned
        if func is Tensor.is_pinned:
            return gpu.place_of(args[0]) is PINNED
        if func in (Tensor.to, Tensor.cpu, Tensor.cuda):
            return self.move(func, args, kwargs)
        pin = kwargs.pop("pin_memory", False)
        device = on_cuda(kwargs.get("device"))
        if device is None:
            if "device" in kwargs and kwargs["device"] is None:
                del kwargs["device"]
            made = func(*args, **kwargs)
            if pin:
                gpu.put(made, PINNED)
            return made
        if func in (torch.tensor, torch.as_tensor):
            gpu.wait("torch.tensor, from pageable memory")
        outer, gpu.making = gpu.making, device
        try:
            made = func(*args, **{**kwargs, "device": CPU})
        finally:
            gpu.making = outer
        for tensor in tree_leaves(made):
            if isinstance(tensor, Tensor):
                gpu.put(tensor, device)
        return made

    def move(self, func: Callable[..., Any], args: Any, kwargs: dict[str, Any]) -> Tensor:
        gpu, tensor, dtype, non_blocking = self.gpu, args[0], None, False
        if func is Tensor.to and len(args) > 1 and isinstance(args[1], Tensor):
            device, dtype = gpu.device_of(args[1]), args[1].dtype
        elif func is Tensor.to:
            copied = kwargs.pop("copy", False)
            device, dtype, non_blocking, _ = torch._C._nn._parse_to(*args[1:], **kwargs)
            if copied:
                kwargs["copy"] = True
        else:
            device = CPU if func is Tensor.cpu else torch.device("cuda", 0)
        old = gpu.place_of(tensor)
        new = old if device is None else on_cuda(device) or CPU
        if new.type == old.type and (new.type == "cpu" or new == old):  # only another type of number
            with torch._C.DisableTorchFunction():
                return tensor.to(dtype or tensor.dtype, copy=kwargs.get("copy", False))
        if new.type == "cpu":
            gpu.wait("a copy to the host")
        elif old.type == "cpu" and not (old is PINNED and non_blocking):
            gpu.wait("a copy from pageable memory" if old is not PINNED else "a blocking copy")
        with torch._C.DisableTorchFunction():
            moved = tensor.to(dtype or tensor.dtype, copy=True)
        gpu.put(moved, new)
        return moved


class _Operators(TorchDispatchMode):
    """Each operator that runs, those of the backward pass included."""

    def __init__(self, gpu: EmulatedGPU) -> None:
        super().__init__()
        self.gpu = gpu

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        gpu, kwargs = self.gpu, kwargs or {}
        name = func._schema.name.split("::")[1]
        if func._can_decompose() and name != "is_nonzero":
            with self:
                found = func.decompose(*args, **kwargs)
            if found is not NotImplemented:
                return found
        tensors = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        places = [gpu.device_of(t) for t in tensors]
        devices = {place for place in places if place.type == "cuda"}
        if gpu.making and not tensors:
            devices = {gpu.making}
        if devices:
            self.check(name, args, kwargs, tensors, places, devices)
            gpu.kernels += 1
        result = func(*args, **kwargs)
        if gpu.recording:
            if name in READS or name in SHAPED_BY_VALUES:
                raise RuntimeError(f"{name}: operation not permitted when stream is capturing, at {line()}")
            gpu.recording.add(func, args, kwargs, result)
        if name not in READS:
            for tensor in tree_leaves(result):
                if isinstance(tensor, Tensor) and (devices or not tensors):
                    gpu.put(tensor, next(iter(devices), CPU))
        return result

    def check(self, name: str, args: Any, kwargs: Any, tensors: Any, places: Any, devices: set[torch.device]) -> None:
        """Count a wait, or raise what CUDA raises."""
        gpu = self.gpu
        if name in READS or name in SHAPED_BY_VALUES or name in CHECKED:
            gpu.wait(name)
        elif name in INDEXING:
            for index in (i for i in args[1] if i is not None):
                if index.dtype in (torch.bool, torch.uint8):
                    gpu.wait(f"{name} by a boolean mask")
                if gpu.device_of(index) == CPU:
                    gpu.wait(f"{name} by indices on the host")
        elif name == "repeat_interleave" and kwargs.get("output_size") is None:
            gpu.wait(name)
        elif name in COPIES:
            if len(set(places)) > 1:
                gpu.wait("a copy between devices")
        elif len(devices) > 1 or any(p == CPU and t.ndim for t, p in zip(tensors, places, strict=True)):
            raise RuntimeError(f"{name}: expected all tensors to be on the same device, found {places}, at {line()}")
