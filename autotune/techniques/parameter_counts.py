"""Counts parameters as they are whole: divided by ZeRO-3 or packed to 4 bit or not."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

__all__ = ["count", "count_trainable"]


def count(parameters: Iterable[nn.Parameter]) -> int:
    """Elements of parameters."""
    return sum(map(_full_size, parameters))


def count_trainable(parameters: Iterable[nn.Parameter]) -> int:
    """Elements of those that are trained."""
    return count(parameter for parameter in parameters if parameter.requires_grad)


def _full_size(parameter: nn.Parameter) -> int:
    if hasattr(parameter, "ds_numel"):
        return int(parameter.ds_numel)
    quantization = getattr(parameter, "quant_state", None)
    return int(quantization.shape.numel()) if quantization is not None else parameter.numel()
