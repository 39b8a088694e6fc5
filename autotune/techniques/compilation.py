"""`torch.compile` of the decoder layers, and the count of what was compiled."""

from __future__ import annotations

from typing import Any

from torch import nn

__all__ = ["CompilationCounter", "compile_in_this_process", "compile_layers"]


def compile_layers(layers: nn.ModuleList) -> None:
    """Have every layer compiled at its first call, in place; all alike share the code.

    Only the call is replaced, below a checkpoint that was put around the layer before, so names
    and parameters stay as they are.
    """
    for layer in layers:
        layer.compile()


def compile_in_this_process() -> None:
    """Have Inductor start no compiling processes, which would outlive a rank that is killed."""
    import torch._inductor.config

    torch._inductor.config.compile_threads = 1


class CompilationCounter:
    """Counts the compilations of this process, of forward and backward, from now on."""

    def __init__(self) -> None:
        from torch._dynamo.callback import on_compile_start

        self.num_compilations = 0
        on_compile_start(self._count)

    def _count(self, _: Any) -> None:
        self.num_compilations += 1
