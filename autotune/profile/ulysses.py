"""DeepSpeed's Ulysses in a single process: its real code, whose exchanges have no partner.

Does not know models, nor how tokens are divided.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from torch import nn

__all__ = ["exchanged_heads"]


@contextlib.contextmanager
def exchanged_heads(model: nn.Module, num_ranks: int, num_samples: int) -> Iterator[None]:
    """Have attention exchange heads for tokens, for as long as this is entered.

    `runtime/sequence_parallel/ulysses_sp.py`, `register_with_transformers`: takes the place of the
    model's attention in the table of transformers, and drops masks.

    Args:
        model: gives parts of the tokens to its attention.
        num_ranks: over which tokens and heads are divided.
        num_samples: of a batch.
    """
    from deepspeed.runtime.sequence_parallel import ulysses_sp
    from deepspeed.sequence import layer
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    config: Any = model.config.get_text_config()  # type: ignore[union-attr, operator]
    name, heads = config._attn_implementation, config.num_attention_heads
    alone = SimpleNamespace(
        get_world_size=lambda group: num_ranks,
        get_rank=lambda *_: 0,
        all_gather=lambda parts, own, group: None,
    )
    with mock.patch.object(ulysses_sp, "dist", alone), mock.patch.object(layer, "dist", alone):
        exchange = ulysses_sp.UlyssesSPAttentionHF(
            attn=ALL_ATTENTION_FUNCTIONS[name],
            batch_size=num_samples,
            attn_head_count=heads,
            attn_head_size=getattr(config, "head_dim", None) or config.hidden_size // heads,
            kv_head_count=getattr(config, "num_key_value_heads", None) or heads,
            num_hidden_layers=config.num_hidden_layers,
            process_group=SimpleNamespace(group_name="sequence"),
            seq_length_is_variable=True,
        )

        def attend(
            module: nn.Module,
            query: torch.Tensor,
            key: torch.Tensor,
            value: torch.Tensor,
            attention_mask: torch.Tensor | None,
            *args: Any,
            **kwargs: Any,
        ) -> Any:
            return exchange(module, query, key, value, None, *args, **kwargs)

        ALL_ATTENTION_FUNCTIONS[name] = attend
        try:
            yield
        finally:
            # What was put over the table's own entry, which shows again.
            del ALL_ATTENTION_FUNCTIONS[name]
            if ALL_ATTENTION_FUNCTIONS[name] is not exchange.attn:
                ALL_ATTENTION_FUNCTIONS[name] = exchange.attn
