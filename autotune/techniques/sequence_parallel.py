"""Sequence parallelism: the tokens of each sample divided over ranks, by DeepSpeed's Ulysses.

Every rank of a sequence group computes all layers on its own part of the tokens; for attention
alone, heads are exchanged for tokens, so each rank has all tokens of some heads (Jacobs et al.,
arXiv 2309.14509; the Hugging Face form in arXiv 2506.13996). Attention masks are not kept: causal
attention over unpadded samples, or samples padded on the right.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from autotune.errors import ConfigError
from autotune.space.strategy import Strategy
from autotune.space.strategy_file import read_strategy_file

__all__ = ["divide_attention", "group_loss", "sequence_units", "shard_batch", "shard_tokens"]

_IGNORED = -100
"""The label of a token that is not learned: transformers' own."""


def divide_attention(model: nn.Module, strategy: Strategy) -> None:
    """Put Ulysses between the model and its attention, and make the sequence groups.

    For the rest of the process: transformers looks its attention up in a table, and that is where
    DeepSpeed steps in.

    Raises:
        ConfigError: no process group was initialised, or this process has Ulysses already.
    """
    from deepspeed.runtime.sequence_parallel.ulysses_sp import UlyssesSPAttentionHF

    if not dist.is_initialized():
        raise ConfigError(
            "sequence_parallel_size needs its ranks: call deepspeed.init_distributed() before "
            "autotune.apply"
        )
    if _has_groups():
        raise ConfigError("sequence_parallel_size is set in this process already: apply it once")
    with _named_heads(model):
        UlyssesSPAttentionHF.register_with_transformers(
            model_name_or_path=model,
            core_attn_implementation=str(strategy.attention),
            sequence_parallel_size=strategy.sequence_parallel_size,
            micro_batch_size=strategy.micro_batch_size,
            seq_length_is_variable=True,
        )


@contextlib.contextmanager
def _named_heads(model: nn.Module) -> Iterator[None]:
    """For a while the model's configuration says what DeepSpeed asks every one for."""
    config: Any = model.config.get_text_config()  # type: ignore[union-attr, operator]
    before = dict(vars(config))
    heads = config.num_attention_heads
    for name, value in (
        ("num_key_value_heads", heads),
        ("head_dim", config.hidden_size // heads),
    ):
        if getattr(config, name, None) is None:
            setattr(config, name, value)
    try:
        yield
    finally:
        vars(config).clear()
        vars(config).update(before)


def sequence_units(strategy: Strategy) -> ModuleType | None:
    """What `deepspeed.initialize` takes as `mpu`, after `divide_attention`; None without."""
    if strategy.sequence_parallel_size == 1:
        return None
    from deepspeed.runtime.sequence_parallel import parallel_state_sp

    units: ModuleType = parallel_state_sp
    return units


def shard_batch(
    batch: dict[str, torch.Tensor], strategy_file: str | Path
) -> dict[str, torch.Tensor]:
    """This rank's part of a batch that all ranks of its sequence group hold as a whole.

    The model's loss is then this rank's part of the mean over all tokens of the batch, as
    DeepSpeed needs it for the gradient of that mean: the parts of a group add up to it, or under
    ZeRO-3 their mean is it. Without sequence parallelism it is the batch as it was.

    Args:
        batch: `input_ids` and `labels`, [samples, tokens]; -100 marks labels that do not count.
            Padding belongs on the right, since attention masks are dropped.
        strategy_file: the `strategy.yaml` of an export.

    Returns:
        The keyword arguments of the model.

    Raises:
        ConfigError: the file is wrong, or the tokens cannot be divided.
    """
    strategy = read_strategy_file(Path(strategy_file)).strategy
    units: Any = sequence_units(strategy)
    if units is None:
        return dict(batch)
    shard = units.get_sequence_parallel_rank()
    return shard_tokens(batch["input_ids"], batch["labels"], strategy, shard=shard)


def shard_tokens(
    input_ids: torch.Tensor,
    labels: torch.Tensor,
    strategy: Strategy,
    *,
    shard: int,
    num_labels: float | None = None,
) -> dict[str, Any]:
    """One part of a batch along its tokens, as the model's keyword arguments.

    Labels are shifted before they are cut, so that the last token of a part learns the first of
    the next one.

    Args:
        input_ids: token ids, [samples, tokens].
        labels: as `input_ids`, not yet shifted.
        strategy: says into how many parts they are cut.
        shard: which part to give.
        num_labels: the divisor of the loss; the labels of this batch if left out.

    Raises:
        ConfigError: the number of tokens is no multiple of the number of parts.
    """
    num_tokens, num_shards = input_ids.shape[1], strategy.sequence_parallel_size
    if num_tokens % num_shards:
        raise ConfigError(
            f"sequence_parallel_size {num_shards} does not divide the {num_tokens} tokens of this "
            "batch: pad it on the right"
        )
    shifted = nn.functional.pad(labels[:, 1:], (0, 1), value=_IGNORED)
    positions = torch.arange(num_tokens, device=input_ids.device).expand_as(input_ids)
    ids, own_positions, own_labels = (
        whole.chunk(num_shards, dim=1)[shard].contiguous()
        for whole in (input_ids, positions, shifted)
    )
    counted = (shifted != _IGNORED).sum()
    divisor = counted if num_labels is None else torch.full_like(counted.float(), num_labels)
    return {
        "input_ids": ids,
        "position_ids": own_positions,
        # transformers computes a loss only where it gets labels; it takes the shifted ones.
        "labels": own_labels,
        "shift_labels": own_labels,
        # The divisor of the loss: the labels of the whole batch, not of this part of it.
        "num_items_in_batch": divisor / _averaged_ranks(strategy),
    }


def group_loss(part: torch.Tensor, strategy: Strategy) -> torch.Tensor:
    """The loss of a sequence group, from this rank's part of it; all its ranks must ask."""
    units: Any = sequence_units(strategy)
    if units is None:
        return part
    total = part.clone()
    dist.all_reduce(total, group=units.get_sequence_parallel_group())
    return total / _averaged_ranks(strategy)


def _averaged_ranks(strategy: Strategy) -> int:
    """By what DeepSpeed divides the sum of a sequence group's gradients.

    ZeRO-0, 1 and 2 add them up. ZeRO-3's reduce-scatter averages over all ranks (`reduce_scatter_
    coalesced` of DeepSpeed 0.19.8), those of the sequence too.
    """
    return strategy.sequence_parallel_size if strategy.zero_stage == 3 else 1


def _has_groups() -> bool:
    from deepspeed.runtime.sequence_parallel import parallel_state_sp

    return parallel_state_sp._SEQUENCE_PARALLEL_GROUP is not None
