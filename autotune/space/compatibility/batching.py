"""Checks which models can keep the samples of a joined row apart, and whether samples differ."""

from __future__ import annotations

from autotune.knob_values import Batching
from autotune.machine.hardware import Hardware
from autotune.machine.software import Software
from autotune.question.workload import Workload
from autotune.space.strategy import Strategy

__all__ = ["conflict"]

_OWN_ATTENTION = frozenset(("falcon",))
"""Architectures of transformers 5.24 that have sdpa, and take no other attention from outside."""

_APART = frozenset(("full_attention", "sliding_attention"))
"""Kinds of layers that see no sample but a token's own, once attention is told their bounds."""

_RECURRENT = ("mamba", "ssm_", "conv_", "linear_conv", "time_step", "lru_", "recurrent")
"""Beginnings of keys of configurations whose layers carry a state along the row."""


def conflict(
    strategy: Strategy, workload: Workload, hardware: Hardware, software: Software
) -> str | None:
    """Why the question does not allow joined samples, in words; None where it does."""
    if strategy.batching is Batching.PADDED:
        return None
    if workload.lengths is None:
        return f"batching {strategy.batching} needs --lengths or --data: no sample has padding"
    model = workload.model
    if model.model_type in _OWN_ATTENTION:
        return f"batching {strategy.batching}: {model.model_type} takes no attention but its own"
    if model.whole_type:
        return f"batching {strategy.batching} is not proven for {model.whole_type}"
    kinds = set(model.config.get("layer_types") or ()) - _APART
    if kinds or any(key.startswith(_RECURRENT) for key in model.config):
        return (
            f"batching {strategy.batching}: layers of {model.model_type} carry a state from one "
            "sample to the next"
        )
    return None
