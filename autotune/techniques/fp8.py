"""Linear layers whose three matrix products are in 8-bit floating point.

Micikevicius et al., FP8 Formats for Deep Learning (arXiv 2209.05433): E4M3 for inputs and weights,
E5M2 for gradients. One scale a tensor, from its largest value just now. Weights, their gradients
and all else keep the layer's own precision.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from autotune.errors import ConfigError
from autotune.knob_values import FP8_MULTIPLE

__all__ = ["Fp8Linear", "use_fp8"]

_INPUT = torch.float8_e4m3fn
_GRADIENT = torch.float8_e5m2

_LEAST_LARGEST = 1e-12
"""A tensor of nothing but zeros is scaled as if this were its largest value."""


def use_fp8(modules: Iterable[nn.Module], *, knob: str) -> None:
    """Compute the products of every linear layer in these modules in 8 bit, in place.

    Raises:
        ConfigError: there is none, or one has a side that is no multiple of 16.
    """
    linears = [
        inner for module in modules for inner in module.modules() if type(inner) is nn.Linear
    ]
    if not linears:
        raise ConfigError(f"{knob} fp8 needs linear layers, and this model has none there")
    for linear in linears:
        sides = (linear.in_features, linear.out_features)
        if any(side % FP8_MULTIPLE for side in sides):
            raise ConfigError(
                f"{knob} fp8 needs linear layers with sides that are multiples of "
                f"{FP8_MULTIPLE}, got {sides[0]} x {sides[1]}"
            )
    for linear in linears:
        linear.__class__ = Fp8Linear


class Fp8Linear(nn.Linear):
    """A linear layer with forward and both backward products in 8 bit."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """As `nn.Linear`'s, [..., in_features] to [..., out_features]."""
        rows = input.reshape(-1, self.in_features)
        product: torch.Tensor = _Fp8Product.apply(rows, self.weight)  # type: ignore[no-untyped-call]
        output = product.reshape(*input.shape[:-1], self.out_features)
        return output if self.bias is None else output + self.bias


class _Fp8Product(torch.autograd.Function):
    """Rows [M, K] times the transpose of a weight [N, K].

    Backward quantizes the saved tensors again: what is kept is what a linear layer keeps anyway,
    and under ZeRO-3 the weight itself, which is whole again by then.
    """

    @staticmethod
    def forward(ctx: Any, rows: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(rows, weight)
        left, right = _quantize(rows, _INPUT), _quantize(weight, _INPUT)
        return _product(left, right, rows.dtype, is_fast=True)

    @staticmethod
    def backward(
        ctx: Any, gradient: torch.Tensor
    ) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        rows, weight = ctx.saved_tensors
        of_rows = of_weight = None
        quantized, scale = _quantize(_pad_rows(gradient), _GRADIENT)
        if ctx.needs_input_grad[0]:
            right, right_scale = _quantize(weight, _INPUT)
            of_rows = _product(
                (quantized, scale), (right.t().contiguous(), right_scale), rows.dtype
            )[: rows.shape[0]]
        if ctx.needs_input_grad[1]:
            right, right_scale = _quantize(_pad_rows(rows), _INPUT)
            of_weight = _product(
                (quantized.t().contiguous(), scale),
                (right.t().contiguous(), right_scale),
                weight.dtype,
            )
        return of_rows, of_weight


def _quantize(tensor: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """A tensor in 8 bit, and the scale by which it is to be multiplied."""
    # One pass over the tensor; the product is taken in the tensor's own dtype, without a copy in
    # fp32. A largest value that is rounded up goes no further than 8 bit rounds down again.
    largest = torch.linalg.vector_norm(tensor.detach(), ord=math.inf).float()
    scale = largest.clamp(min=_LEAST_LARGEST) / torch.finfo(dtype).max
    return (tensor * scale.reciprocal()).to(dtype), scale


def _product(
    left: tuple[torch.Tensor, torch.Tensor],
    right: tuple[torch.Tensor, torch.Tensor],
    dtype: torch.dtype,
    *,
    is_fast: bool = False,
) -> torch.Tensor:
    """Rows [M, K] times the transpose of rows [N, K], both contiguous; [M, N].

    Args:
        left: in 8 bit, and its scale.
        right: likewise.
        dtype: of the product.
        is_fast: let the tensor cores accumulate in fewer bits, good enough for forward.
    """
    return torch._scaled_mm(
        left[0].contiguous(),
        right[0].t(),
        scale_a=left[1],
        scale_b=right[1],
        out_dtype=dtype,
        use_fast_accum=is_fast,
    )


def _pad_rows(rows: torch.Tensor) -> torch.Tensor:
    """Rows of zeros added up to a multiple of 16: they are the inner dimension of a product."""
    missing = -rows.shape[0] % FP8_MULTIPLE
    return F.pad(rows, (0, 0, 0, missing)) if missing else rows
