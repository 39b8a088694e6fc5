"""How fast the host launches a training step, by layers so small that there is nothing else to do.

A single operation in a loop is no witness of it: on one H100 it took longer than it did elsewhere,
and whole layers were launched in less time.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaModel

from autotune.measure.timing import seconds_of

__all__ = ["kernel_launch_s"]

_LAUNCHES_OF_A_LAYER = 465
"""Small operations that take as long as forward and backward of one layer. On the reference core
an operation takes 2.55 µs, and a layer 1.39 ms under DeepSpeed's engine: 1.17 times as long as
without it, measured beside each other on a CPU."""

_NUM_LAYERS = (2, 10)
"""The difference is of layers alone."""

_NUM_TOKENS = 8
_WIDTH = 64


def kernel_launch_s(device: torch.device) -> float:
    """Seconds of one launch: those of a layer's forward and backward, shared by its launches."""
    few, many = (seconds_of(_step(num, device), device) for num in _NUM_LAYERS)
    layer_s = (many - few) / (_NUM_LAYERS[1] - _NUM_LAYERS[0])
    return max(layer_s, many / _NUM_LAYERS[1] / 2) / _LAUNCHES_OF_A_LAYER


def _step(num_layers: int, device: torch.device) -> Callable[[], None]:
    """Forward and backward of so many layers."""
    config = LlamaConfig(
        hidden_size=_WIDTH,
        intermediate_size=_WIDTH,
        num_hidden_layers=num_layers,
        num_attention_heads=4,
        num_key_value_heads=4,
        vocab_size=_WIDTH,
    )
    model: torch.nn.Module = LlamaModel(config)
    model.to(device=device, dtype=torch.bfloat16)
    tokens = torch.zeros(1, _NUM_TOKENS, dtype=torch.long, device=device)

    def step() -> None:
        model(tokens).last_hidden_state.sum().backward()

    return step
