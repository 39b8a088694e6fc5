"""Liger's kernels on a host without a GPU: its Python code, without the launches.

What Liger allocates and keeps is in its Python code; its Triton kernels only fill it. For a
process of its own: a stand-in for Triton takes the place of the real one for all of its life.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterator
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import FunctionType, ModuleType
from typing import Any
from unittest import mock

import torch

__all__ = ["as_on_a_gpu", "launches_told_to", "stand_in_for_triton"]

_VERSION = "3.6.0"
"""What Liger is told, which takes newer ways of importing Triton's functions from 3.0 on."""


Launch = Callable[[str, list[torch.Tensor]], None]

_listener: list[Launch] = []
"""Who is told of launches; the last one is."""


class _Anything:
    """What every name of Triton stands for: a type, a constant, a decorator."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        # `@triton.jit` makes a kernel; `@triton.autotune(...)` and its like leave what they get.
        [only] = args if len(args) == 1 and not kwargs else [None]
        if isinstance(only, _Kernel):
            return only
        return _Kernel(only.__name__) if isinstance(only, FunctionType) else self

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self


class _Kernel:
    """A kernel that is launched as Triton's are, and does nothing."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __getitem__(self, grid: Any) -> Callable[..., None]:
        def launch(*args: Any, **kwargs: Any) -> None:
            given = [value for value in (*args, *kwargs.values())]
            tensors = [value for value in given if isinstance(value, torch.Tensor)]
            for listener in _listener[-1:]:
                listener(self._name, tensors)

        return launch


class _Triton(ModuleType):
    """A module of Triton."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Anything()


class _Finder(MetaPathFinder, Loader):
    """Finds `triton` and all modules below it."""

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if fullname.partition(".")[0] != "triton":
            return None
        return importlib.util.spec_from_loader(fullname, self, is_package=True)

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        module = _Triton(spec.name)
        if spec.name == "triton":
            module.__dict__["__version__"] = _VERSION
            module.__dict__["next_power_of_2"] = lambda n: 1 << max(0, int(n) - 1).bit_length()
            module.__dict__["cdiv"] = lambda a, b: -(-a // b)
        return module

    def exec_module(self, module: ModuleType) -> None:
        """There is nothing to run."""


def stand_in_for_triton() -> None:
    """Let Liger be imported, and its kernels be called, without Triton.

    Torch must be imported before, which otherwise would take it for the real one.
    """
    for name in [name for name in sys.modules if name.partition(".")[0] == "triton"]:
        del sys.modules[name]
    sys.meta_path.insert(0, _Finder())


@contextlib.contextmanager
def launches_told_to(listener: Launch) -> Iterator[None]:
    """Tell of each launch: the kernel's name, and the tensors that it is given."""
    _listener.append(listener)
    try:
        yield
    finally:
        _listener.pop()


@contextlib.contextmanager
def as_on_a_gpu() -> Iterator[None]:
    """Have Liger's loss write its products in place, as it does where tensors are on a GPU.

    `ops/fused_linear_cross_entropy.py`: on the host each chunk makes a gradient of the whole
    output projection, and its copy in fp32.
    """
    if "liger_kernel" not in sys.modules:
        yield
        return
    loss: Any = importlib.import_module("liger_kernel.ops.fused_linear_cross_entropy")
    with (
        mock.patch.object(loss, "_can_use_mm_out", return_value=True),
        mock.patch.object(loss, "torch", _InPlace()),
    ):
        yield


class _InPlace:
    """Torch, of which a product that is added to something is nothing by itself."""

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)

    def mm(self, left: torch.Tensor, right: torch.Tensor, **out: Any) -> torch.Tensor:
        if out:
            return torch.mm(left, right, **out)
        for listener in _listener[-1:]:
            listener("mm", [left, right])
        return left.new_zeros(())
