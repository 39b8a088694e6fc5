"""Activations kept by layers of other libraries and years, beside those that are traced here.

Does not know which engine trains them.
"""

from __future__ import annotations

from autotune.knob_values import ModuleGroup
from autotune.question.adapter_targets import has_adapter
from autotune.question.workload import ModelShape

__all__ = ["dropout_bytes", "megatron_layer_bytes", "old_opt_bytes"]

_MASK_BYTES = 1


def dropout_bytes(
    shape: ModelShape, targets: tuple[str, ...], *, adapter_bytes: int, element_bytes: int
) -> int:
    """What dropout before adapters adds to one token of one layer.

    Each adapter keeps a mask, and its own dropped input where adapters without dropout share one
    (`peft/tuners/lora/layer.py`, `Linear.forward`).

    Args:
        shape: the architecture.
        targets: linear layers that have adapters.
        adapter_bytes: of a number that an adapter computes in.
        element_bytes: of a number of the layer itself.
    """
    own = adapter_bytes + _MASK_BYTES
    total = 0
    for group, linears in shape.adapter_linears.items():
        *first, last = linears or ("",)
        widths = [linears[name][0] for name in first if has_adapter(name, group, targets)]
        total += own * sum(widths) - element_bytes * max(widths, default=0)
        if has_adapter(last, group, targets) and linears:
            # Attention keeps its output in any case, the MLP the last input for an adapter alone.
            shared = element_bytes if group is ModuleGroup.MLP else 0
            total += (own - shared) * linears[last][0]
    return total


def old_opt_bytes(shape: ModelShape, seq_len: int) -> int:
    """What OPT of transformers 4 in 2023 adds to eager attention of today, for one token.

    Masked scores are clamped by `torch.max`, which keeps its argument, in fp16; and two residual
    dropouts (`models/opt/modeling_opt.py`; the model's own `dropout` is 0.1) keep their masks.
    """
    return 2 * shape.num_attention_heads * seq_len + 2 * _MASK_BYTES * shape.hidden_size


def megatron_layer_bytes(shape: ModelShape, seq_len: int, tensor_parallel_size: int) -> int:
    """Of one token: Korthikanti et al. (arXiv 2205.05198), equation 2, in 16 bit."""
    h, scores = shape.hidden_size, shape.num_attention_heads * seq_len
    return 10 * h + (24 * h + 5 * scores) // tensor_parallel_size
