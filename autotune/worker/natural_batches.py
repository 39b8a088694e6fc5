"""The batches of samples with lengths of their own, as collators make them.

Which samples an optimizer step sees, and how long they are, follows from the seed and the global
batch alone: every strategy trains on the same ones, however it divides and joins them.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch

from autotune.knob_values import Batching
from autotune.question.lengths import Lengths
from autotune.techniques.collation import PAD_MULTIPLE, joined, padded
from autotune.trials.trial import TrialSpec

__all__ = ["FedTokens", "NaturalBatches", "drawn_lengths"]

_PIECES = 4096
"""More samples than this never lie in one packed sequence."""


@dataclass(frozen=True, slots=True)
class FedTokens:
    """What one optimizer step feeds, over all ranks."""

    real: int
    padded: int
    """Real ones and padding."""


@lru_cache(maxsize=64)
def drawn_lengths(lengths: Lengths, num_samples: int, seed: int, step: int) -> tuple[int, ...]:
    """The lengths of one optimizer step's samples, in order.

    One is drawn from each of as many equal parts of the histogram, so that steps are alike.
    """
    generator = torch.Generator().manual_seed(seed * 1_000_003 + step)
    places = torch.randperm(num_samples, generator=generator).double()
    within = torch.rand(num_samples, generator=generator, dtype=torch.float64)
    quantiles = (places + within) / num_samples
    return tuple(lengths.at(quantile) for quantile in quantiles.tolist())


class NaturalBatches:
    """The micro-batches of one rank.

    Args:
        spec: what is trained; its workload has lengths.
        data_rank: which of the data-parallel groups this rank belongs to.
        device: where batches go.
    """

    def __init__(self, spec: TrialSpec, *, data_rank: int, device: torch.device) -> None:
        assert spec.workload.lengths is not None
        self._lengths = spec.workload.lengths
        self._spec, self._device, self._data_rank = spec, device, data_rank
        self._size = spec.strategy.micro_batch_size
        self._num_groups = spec.strategy.data_parallel_size(spec.num_ranks)
        self._batching = spec.strategy.batching
        self._divisors: dict[int, float] = {}
        """Of the latest step."""

    def inputs(self, step: int, micro: int) -> dict[str, Any]:
        """The model's arguments for one micro-batch of this rank."""
        samples = self._samples(step, micro, self._data_rank)
        return self._collated(samples, self._divisor(step))

    def longest(self, most_samples: int | None = None) -> dict[str, Any]:
        """The model's arguments for the longest samples that a micro-batch can draw.

        Args:
            most_samples: of the batch; as many as a micro-batch has if left out.
        """
        size = min(self._size, most_samples or self._size)
        lengths = _longest_of(self._lengths, size)
        if self._batching is Batching.PACKED:
            lengths = [self._spec.workload.seq_len] * size
        samples = [_tokens(self._spec, 2**40 + place, n) for place, n in enumerate(lengths)]
        return self._collated(samples, max(1, sum(lengths) - len(lengths)))

    def fed(self, step: int) -> FedTokens:
        """What the step feeds on all ranks."""
        batches = self._batches_of(step)
        real = sum(map(sum, batches))
        if self._batching is not Batching.PADDED:
            return FedTokens(real, real)
        return FedTokens(real, sum(len(each) * self._padded_length(each) for each in batches))

    @property
    def _num_micro(self) -> int:
        return self._spec.workload.global_batch_size // (self._size * self._num_groups)

    def _divisor(self, step: int) -> float:
        """Labels of a micro-batch in the mean of the step: the loss is then the step's mean.

        With a divisor of its own a micro-batch of few tokens would weigh as much as any other, and
        the size of micro-batches would change what is learned; transformers' Trainer does so too.
        """
        if step not in self._divisors:
            shares = self._num_micro * self._num_groups
            batches = self._batches_of(step)
            labels = sum(max(0, n - 1) for lengths in batches for n in lengths)
            self._divisors = {step: max(1, labels) / shares}
        return self._divisors[step]

    def _batches_of(self, step: int) -> list[list[int]]:
        """Lengths of the samples of each micro-batch of all ranks."""
        return [
            self._lengths_of(step, micro, group)
            for micro in range(self._num_micro)
            for group in range(self._num_groups)
        ]

    def _first(self, micro: int, group: int) -> int:
        """The place of a micro-batch's first sample in the global batch."""
        return (micro * self._num_groups + group) * self._size

    def _lengths_of(self, step: int, micro: int, group: int) -> list[int]:
        """Of a micro-batch's samples; of packed sequences, those of their pieces."""
        workload, seed = self._spec.workload, self._spec.seed
        first = self._first(micro, group)
        if self._batching is not Batching.PACKED:
            drawn = drawn_lengths(self._lengths, workload.global_batch_size, seed, step)
            return list(drawn[first : first + self._size])
        rows = (step * workload.global_batch_size + first + place for place in range(self._size))
        return [n for row in rows for n in _pieces(self._lengths, workload.seq_len, seed, row)]

    def _samples(self, step: int, micro: int, group: int) -> list[torch.Tensor]:
        """Token ids of each sample of a micro-batch."""
        first = step * self._spec.workload.global_batch_size + self._first(micro, group)
        many = _PIECES if self._batching is Batching.PACKED else 1
        return [
            _tokens(self._spec, first * many + place, n)
            for place, n in enumerate(self._lengths_of(step, micro, group))
        ]

    def _padded_length(self, lengths: list[int]) -> int:
        """Tokens of each sample of a micro-batch with its padding."""
        strategy, seq_len = self._spec.strategy, self._spec.workload.seq_len
        if strategy.pipeline_parallel_size > 1:
            # DeepSpeed's stages agree on the shape of what they exchange once.
            return seq_len
        multiple = PAD_MULTIPLE * strategy.sequence_parallel_size
        padded = -(-max(lengths) // multiple) * multiple
        return padded if strategy.sequence_parallel_size > 1 else min(padded, seq_len)

    def _collated(self, samples: list[torch.Tensor], divisor: float) -> dict[str, Any]:
        if self._batching is Batching.PADDED:
            batch = padded(samples, samples, self._padded_length([len(each) for each in samples]))
        else:
            whole = torch.cat(samples)
            batch = joined(whole, whole, [len(each) for each in samples])
        on_device = {
            name: value.to(self._device) if torch.is_tensor(value) else value
            for name, value in batch.items()
        }
        return on_device | {"num_items_in_batch": divisor}


def _tokens(spec: TrialSpec, sample: int, length: int) -> torch.Tensor:
    """As `samples.micro_batch` draws them."""
    generator = torch.Generator().manual_seed(spec.seed * 1_000_003 + sample)
    uniform = torch.rand(length, generator=generator, dtype=torch.float64)
    return (spec.workload.model.vocab_size**uniform).long() - 1


@lru_cache(maxsize=4096)
def _pieces(lengths: Lengths, seq_len: int, seed: int, row: int) -> tuple[int, ...]:
    """Lengths of the samples that fill one packed sequence; the last is cut where it is full."""
    generator = torch.Generator().manual_seed(seed * 1_000_003 + row)
    pieces: list[int] = []
    left = seq_len
    while left:
        quantile = float(torch.rand((), generator=generator, dtype=torch.float64))
        pieces.append(min(left, lengths.at(quantile)))
        left -= pieces[-1]
    return tuple(pieces)


def _longest_of(lengths: Lengths, num_samples: int) -> list[int]:
    """The longest samples of all; the longest again where there are not so many."""
    found: list[int] = []
    for tokens, count in zip(reversed(lengths.tokens), reversed(lengths.counts), strict=True):
        found += [tokens] * min(count, num_samples - len(found))
    return found + [lengths.longest] * (num_samples - len(found))
