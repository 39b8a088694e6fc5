"""Attention over samples that lie one after the other in a single row, without padding.

transformers hands the bounds of the samples to attention, as it does for FlashAttention 2
(`cu_seq_lens_q`, `max_length_q`). Its `sdpa` builds a mask of all tokens by all tokens from them.
Here each sample attends to itself alone: on a GPU by PyTorch's own FlashAttention for samples of
any length, elsewhere sample by sample.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from torch import nn

from autotune.errors import ConfigError

__all__ = ["NAME", "attend_in_samples", "joined_attention"]

NAME = "autotune_joined"
"""The name of this attention in transformers."""

_HALF = (torch.float16, torch.bfloat16)
_WIDEST_HEAD = 256
"""Of FlashAttention 2."""


def attend_in_samples(model: nn.Module) -> None:
    """Have a model of transformers attend within each sample of a joined batch, in place.

    A batch without bounds of samples, padded or not, is attended to by `sdpa`, as before.

    Raises:
        ConfigError: the architecture takes no attention but its own.
    """
    from transformers import AttentionInterface, AttentionMaskInterface

    AttentionInterface.register(NAME, joined_attention)
    AttentionMaskInterface.register(NAME, _mask_of_padding)
    wrapped: Any = model
    try:
        wrapped.set_attn_implementation(NAME)
    except (ValueError, ImportError) as error:
        lines = str(error).strip().splitlines()
        raise ConfigError(
            f"batching: {type(model).__name__} cannot join samples: {lines[0]}"
        ) from error
    if wrapped.config._attn_implementation != NAME:
        raise ConfigError(
            f"batching: {type(model).__name__} cannot join samples: it takes its attention only "
            "when it is built"
        )


def joined_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    cu_seq_lens_q: torch.Tensor | None = None,
    max_length_q: int | None = None,
    **more: Any,
) -> tuple[torch.Tensor, None]:
    """Causal attention within each sample.

    Args:
        module: of transformers, which calls this.
        query: [1, heads, tokens, head dimension].
        key: as `query`, of as many heads as keys and values have.
        value: as `key`.
        attention_mask: of a padded batch, as `sdpa` takes it; joined batches have none.
        dropout: must be 0.
        scaling: of the scores.
        sliding_window: tokens that a token looks back to, itself among them; None for all.
        cu_seq_lens_q: where each sample begins, and the end of the last, [samples + 1], int32.
        max_length_q: tokens of the longest sample.
        more: what transformers hands to other attentions.

    Returns:
        [1, tokens, heads, head dimension].

    Raises:
        ConfigError: dropout, or a mask.
    """
    if dropout:
        raise ConfigError("batching: attention of joined samples has no dropout; set it to 0")
    if attention_mask is not None and cu_seq_lens_q is not None:
        raise ConfigError("batching: a joined batch takes no attention_mask")
    if more.get("softcap") is not None or more.get("s_aux") is not None:
        raise ConfigError(
            f"batching: {type(module).__name__} caps its scores or has sinks, which attention of "
            "joined samples does not compute"
        )
    if cu_seq_lens_q is None and attention_mask is None:
        cu_seq_lens_q, max_length_q = _bounds_of(more.get("position_ids"), query.shape)
    if cu_seq_lens_q is None:
        from transformers.integrations.sdpa_attention import sdpa_attention_forward

        found: tuple[torch.Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, **more
        )
        return found
    if query.is_cuda and _has_kernel(query, value):
        assert max_length_q is not None
        return _by_kernel(query, key, value, cu_seq_lens_q, max_length_q, scaling, sliding_window)
    return _one_by_one(query, key, value, cu_seq_lens_q, scaling, sliding_window)


def _bounds_of(
    positions: torch.Tensor | None, shape: torch.Size
) -> tuple[torch.Tensor | None, int | None]:
    """Bounds of samples that a collator told by their positions alone; None for a single one."""
    if positions is None or shape[0] != 1 or positions.shape != (1, shape[2]):
        return None, None
    starts = (positions[0] == 0).nonzero().flatten()
    if len(starts) < 2:
        return None, None
    bounds = nn.functional.pad(starts, (0, 1), value=shape[2]).int()
    return bounds, int(bounds.diff().max())


def _has_kernel(query: torch.Tensor, value: torch.Tensor) -> bool:
    """Whether FlashAttention 2 takes these heads on this GPU."""
    width = query.shape[-1]
    return (
        query.dtype in _HALF
        and width == value.shape[-1]
        and width <= _WIDEST_HEAD
        and width % 8 == 0
        and torch.cuda.get_device_capability(query.device) >= (8, 0)
    )


def _mask_of_padding(*, attention_mask: torch.Tensor | None = None, **more: Any) -> Any:
    """The mask of a batch that is padded, such as one to evaluate; None for all others."""
    if attention_mask is None:
        return None
    from transformers.masking_utils import sdpa_mask

    return sdpa_mask(attention_mask=attention_mask, **more)


def _by_kernel(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    bounds: torch.Tensor,
    longest: int,
    scaling: float | None,
    window: int | None,
) -> tuple[torch.Tensor, None]:
    """FlashAttention of PyTorch, to which `torch.nn.attention.varlen` leads too."""
    tokens = [each[0].transpose(0, 1).contiguous() for each in (query, key, value)]
    output, *_ = torch.ops.aten._flash_attention_forward(
        *tokens,
        bounds,
        bounds,
        longest,
        longest,
        0.0,
        True,
        False,
        scale=scaling,
        window_size_left=None if window is None else window - 1,
        window_size_right=None if window is None else 0,
    )
    return output[None], None


def _one_by_one(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    bounds: torch.Tensor,
    scaling: float | None,
    window: int | None,
) -> tuple[torch.Tensor, None]:
    outputs = []
    for start, end in pairwise(bounds.tolist()):
        length = end - start
        mask = None
        if window is not None and window < length:
            ones = torch.ones(length, length, dtype=torch.bool, device=query.device)
            mask = ones.tril() & ones.triu(1 - window)
        outputs.append(
            nn.functional.scaled_dot_product_attention(
                query[:, :, start:end],
                key[:, :, start:end],
                value[:, :, start:end],
                attn_mask=mask,
                is_causal=mask is None,
                scale=scaling,
                enable_gqa=query.shape[1] != key.shape[1],
            )
        )
    return torch.cat(outputs, dim=2).transpose(1, 2).contiguous(), None
