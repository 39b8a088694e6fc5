"""The uncertainty of a predicted step time: from the machine, and from a strategy's techniques.

Deviations are standard deviations of the logarithm. Does not know what is predicted.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from operator import mul

from autotune.knob_values import (
    Attention,
    Batching,
    Experts,
    GroupPrecision,
    ModuleGroup,
    Offload,
    Precision,
)
from autotune.predictor.uncertainty.coefficients import TimeCurve
from autotune.predictor.uncertainty.map_fit import Fit
from autotune.space.optimizers import OPTIMIZERS
from autotune.space.strategy import Strategy

__all__ = ["MODEL_DEVIATION", "log_bounds", "techniques"]

MODEL_DEVIATION = 0.05
"""Deviation that coefficients cannot remove. Measured in 150 trials on one H100: residuals after
the fit have a median of 2 %, and a 90th percentile of 8 %."""

_QUANTILE = 2.1
"""Deviations to each side that hold 95 %: a little more than a normal distribution's 1.96."""

_OFFLOADS = {"offload_optimizer": 0.15, "offload_param": 0.8, "offload_checkpoints": 0.15}
_TILES, _COMPILED, _FP8, _FP32, _EAGER = 0.2, 0.15, 0.15, 0.12, 0.1
_ADAPTERS, _ZERO3, _FUSED, _RANKS = 0.08, 0.25, 0.07, 0.2
"""Additional deviations for techniques with few trials so far: about the error of those trials."""


_MASKED, _JOINED = 0.3, 0.15
"""The same for batches of samples with lengths of their own: padded ones, whose mask sends
attention to another kernel, and joined ones. Assumed until trials have measured them."""

_ROUTED, _LOOP = 0.25, 0.5
"""The same for routed experts. Assumed, until `tests/benchmarks/experts.py` has measured what
grouped products and the sums behind them attain. How rows are spread is a small part of it: with
random routers (the same script, `--only spread`) the busiest of 128 experts had up to 5.7 times
the mean, and the rows that tiles add were within 4 % of those of an even spread. The loop also
waits for the device at each expert."""


def techniques(
    strategy: Strategy,
    num_ranks: int,
    *,
    has_experts: bool = False,
    has_lengths: bool = False,
) -> Mapping[str, float]:
    """Techniques of a strategy with few trials so far, and the deviation that each adds.

    Args:
        strategy: how it is trained.
        num_ranks: on so many devices.
        has_experts: whether the model routes its tokens to experts.
        has_lengths: whether samples have lengths of their own.
    """
    found = {
        knob: deviation
        for knob, deviation in _OFFLOADS.items()
        if getattr(strategy, knob) is not Offload.NONE
    }
    deviation = OPTIMIZERS[strategy.optimizer].deviation
    if deviation:
        found[strategy.optimizer] = deviation
    groups = {strategy.precision_of(group) for group in ModuleGroup}
    flags = (
        ("tiles", strategy.mlp_tiles > 1 or strategy.loss_tiles > 1, _TILES),
        ("compiled", strategy.torch_compile, _COMPILED),
        ("fp8", GroupPrecision.FP8 in groups, _FP8),
        ("fp32", strategy.precision is Precision.FP32, _FP32),
        ("eager", strategy.attention is Attention.EAGER, _EAGER),
        ("adapters", strategy.lora_rank > 0, _ADAPTERS),
        ("ZeRO-3", strategy.zero_stage == 3, _ZERO3),
        ("fused", strategy.fused_kernels, _FUSED),
        ("ranks", num_ranks > 1, _RANKS),
    )
    if has_experts:
        is_loop = strategy.experts_implementation is Experts.EAGER
        found["experts"] = _LOOP if is_loop else _ROUTED
    if has_lengths:
        is_padded = strategy.batching is Batching.PADDED
        found["batching"] = _MASKED if is_padded else _JOINED
    return found | {name: deviation for name, is_used, deviation in flags if is_used}


def log_bounds(
    curve: TimeCurve, known: Fit, unproven: Sequence[float], *, rest: float = MODEL_DEVIATION
) -> tuple[float, float]:
    """Distances of the 95 % bounds of a step time's logarithm below and above its expected value.

    Args:
        curve: the step time as a function of the coefficients.
        known: the coefficients and their covariance.
        unproven: deviations of the techniques that no trial has used.
        rest: deviation that neither coefficients nor techniques explain.
    """
    slopes = curve.slopes(known.at)
    variance = sum(
        slope * sum(map(mul, row, slopes))
        for slope, row in zip(slopes, known.covariance, strict=True)
    )
    variance += rest**2 + sum(deviation**2 for deviation in unproven)
    hidden = curve.hidden(known.at, known.covariance)
    return _QUANTILE * math.sqrt(variance), _QUANTILE * math.sqrt(variance + hidden**2)
