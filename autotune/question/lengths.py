"""The lengths of the samples that are trained on: a histogram, and what batches make of it.

Does not know where the lengths came from, or how a strategy batches them.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate, pairwise
from typing import Any

from autotune.errors import ConfigError

__all__ = ["MOST_BINS", "Lengths"]

MOST_BINS = 512
"""Distinct lengths that are kept; more of them are merged with their neighbours."""

_MOST_TOKENS = 2**27
_MOST_SAMPLES = 2**53


@dataclass(frozen=True, slots=True)
class Lengths:
    """How many samples have how many tokens.

    Raises:
        ConfigError: no such histogram can be; the message says why.
    """

    tokens: tuple[int, ...]
    """Lengths in tokens, ascending."""
    counts: tuple[int, ...]
    """Samples of each length."""

    def __post_init__(self) -> None:
        """Refuse what is no histogram."""
        if not self.tokens or len(self.tokens) != len(self.counts):
            raise ConfigError("lengths need at least one length, and a count of each")
        if len(self.tokens) > MOST_BINS:
            raise ConfigError(f"lengths have at most {MOST_BINS} distinct values")
        if any(type(each) is not int for each in (*self.tokens, *self.counts)):
            raise ConfigError("lengths and their counts are whole numbers")
        is_ascending = all(a < b for a, b in pairwise(self.tokens))
        if not is_ascending or not 1 <= self.tokens[0] <= self.tokens[-1] <= _MOST_TOKENS:
            raise ConfigError(f"lengths are ascending, from 1 to {_MOST_TOKENS:,} tokens")
        if min(self.counts) < 1 or self.num_samples > _MOST_SAMPLES:
            raise ConfigError(f"lengths are counted from 1 to {_MOST_SAMPLES:,} samples")

    @classmethod
    def of(cls, samples: Iterable[int] | Mapping[int, int]) -> Lengths:
        """The histogram of these lengths, or of these counts by length.

        Raises:
            ConfigError: a length or a count that cannot be, or none at all.
        """
        found: dict[int, int] = {}
        pairs = samples.items() if isinstance(samples, Mapping) else ((n, 1) for n in samples)
        for tokens, count in pairs:
            found[tokens] = found.get(tokens, 0) + count
        ordered = sorted(found.items())
        if ordered and not 1 <= ordered[0][0] <= ordered[-1][0] <= _MOST_TOKENS:
            wrong = ordered[0][0] if ordered[0][0] < 1 else ordered[-1][0]
            raise ConfigError(f"a sample has 1 to {_MOST_TOKENS:,} tokens, got {wrong}")
        if min(found.values(), default=1) < 1:
            raise ConfigError("each length has at least one sample")
        merged = _merged(ordered)
        return cls(tuple(n for n, _ in merged), tuple(c for _, c in merged))

    @property
    def num_samples(self) -> int:
        """Samples of the histogram."""
        return sum(self.counts)

    @property
    def longest(self) -> int:
        """Tokens of the longest sample."""
        return self.tokens[-1]

    @property
    def mean(self) -> float:
        """Tokens of a sample in the mean."""
        return self._total / self.num_samples

    @property
    def mean_square(self) -> float:
        """Mean of the squares: the work of attention goes by it."""
        pairs = zip(self.tokens, self.counts, strict=True)
        return sum(n * n * count for n, count in pairs) / self.num_samples

    @property
    def _total(self) -> int:
        return sum(n * count for n, count in zip(self.tokens, self.counts, strict=True))

    def cut(self, most_tokens: int) -> Lengths:
        """The same samples, longer ones cut off at so many tokens."""
        if self.longest <= most_tokens:
            return self
        counts: dict[int, int] = {}
        for n, count in zip(self.tokens, self.counts, strict=True):
            counts[min(n, most_tokens)] = counts.get(min(n, most_tokens), 0) + count
        return Lengths(tuple(counts), tuple(counts.values()))

    def at(self, quantile: float) -> int:
        """The length of the sample at this place among all, from 0 (shortest) to below 1."""
        cumulated = _cumulated(self)
        return self.tokens[bisect_left(cumulated, int(quantile * self.num_samples) + 1)]

    def expected_longest(self, num_samples: int) -> float:
        """Tokens of the longest of so many samples, drawn independently, in the mean."""
        total = self.num_samples
        below = [0.0, *((each / total) ** num_samples for each in _cumulated(self))]
        chances = (b - a for a, b in pairwise(below))
        return sum(n * chance for n, chance in zip(self.tokens, chances, strict=True))

    def __str__(self) -> str:
        """In words, for messages."""
        return f"{self.num_samples:,} samples of {self.mean:,.0f} tokens, at most {self.longest:,}"

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> Lengths:
        """Read back what `dataclasses.asdict` gave, through JSON or not.

        Raises:
            ConfigError: it is no histogram.
        """
        try:
            return cls(tuple(record["tokens"]), tuple(record["counts"]))
        except (KeyError, TypeError) as error:
            raise ConfigError(f"these are no lengths: {error}") from error


@lru_cache(maxsize=16)
def _cumulated(lengths: Lengths) -> list[int]:
    return list(accumulate(lengths.counts))


def _merged(ordered: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """At most `MOST_BINS` of them: equal widths, at the mean of each; the longest stays exact."""
    if len(ordered) <= MOST_BINS:
        return ordered
    longest, first = ordered[-1], ordered[0][0]
    width = -(-(longest[0] - first) // (MOST_BINS - 1))
    bins: dict[int, tuple[int, int]] = {}
    for tokens, count in ordered[:-1]:
        total, num = bins.get((tokens - first) // width, (0, 0))
        bins[(tokens - first) // width] = total + tokens * count, num + count
    kept: dict[int, int] = {}
    for total, num in bins.values():
        mean = round(total / num)
        kept[mean] = kept.get(mean, 0) + num
    kept[longest[0]] = kept.get(longest[0], 0) + longest[1]
    return sorted(kept.items())
