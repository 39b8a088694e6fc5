"""Workspaces of single kernels, which do not grow in step with a batch.

Read from PyTorch 2.11 (`aten/src/ATen/native/cuda/`), for a GPU with the multiprocessors of an
H100: others divide sums into other numbers of pieces. Does not know which kernels are launched.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

__all__ = ["Workspace", "WorkspaceKind"]

_FP32_BYTES = 4

_SIMPLE_KERNEL_INDICES = 3072
_ROWS_OF_A_SEGMENT = 10

_NUM_MULTIPROCESSORS = 132
_THREADS_OF_A_MULTIPROCESSOR = 2048
_THREADS_OF_A_BLOCK = 512
_WARP = 32
_VECTOR = 4
_LEAST_VALUES_OF_A_THREAD = 16
_MOST_VALUES_OF_A_THREAD = 256


class WorkspaceKind(StrEnum):
    """Which kernel takes it."""

    SORT = "sort"
    """The gradient of an embedding."""
    SUM = "sum"
    """A sum over all tokens: the gradient of a bias, or of a norm's weight."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Workspace:
    """The workspace of one kernel, for any number of samples."""

    kind: WorkspaceKind
    rows: int
    """Rows of the embedding."""
    width: int
    """Elements of a row, or the number of columns that are summed."""
    fixed: int
    """Tokens that do not depend on the number of samples."""
    of_sample: int

    def size_bytes(self, num_samples: int) -> int:
        """Bytes of the workspace for that many samples."""
        tokens = self.fixed + self.of_sample * num_samples
        if self.kind is WorkspaceKind.SUM:
            return _sum_bytes(self.width, tokens)
        return _sort_bytes(self.rows, self.width, tokens)


def _sort_bytes(rows: int, width: int, tokens: int) -> int:
    """Tokens are sorted by their row, and partial sums are in fp32.

    `EmbeddingBackwardKernel.cu`: a partial sum for each row and for each ten tokens at most. Few
    tokens have a kernel without.
    """
    if tokens <= _SIMPLE_KERNEL_INDICES:
        return 0
    return (min(tokens, rows) + tokens // _ROWS_OF_A_SEGMENT) * width * _FP32_BYTES


def _sum_bytes(columns: int, tokens: int) -> int:
    """Blocks that share a column leave partial sums in fp32 (`Reduce.cuh`, `setReduceConfig`)."""
    vector = _VECTOR if columns % _VECTOR == 0 else 1
    threads = _THREADS_OF_A_BLOCK // vector
    across, down = columns // vector, tokens
    width = min(_power_of_two(across, threads), _WARP)
    height = min(_power_of_two(down, threads), threads // width)
    width = min(_power_of_two(across, threads), threads // height)
    if down < min(height * _LEAST_VALUES_OF_A_THREAD, _MOST_VALUES_OF_A_THREAD):
        return 0
    values = -(-down // height)
    most_blocks = _NUM_MULTIPROCESSORS * (_THREADS_OF_A_MULTIPROCESSOR // (width * height))
    blocks = -(-across // width)
    if values < _MOST_VALUES_OF_A_THREAD or blocks > most_blocks:
        return 0
    pieces = max(
        min(-(-most_blocks // blocks), -(-values // _LEAST_VALUES_OF_A_THREAD)),
        -(-values // _MOST_VALUES_OF_A_THREAD),
    )
    if pieces == 1:
        return 0
    return _FP32_BYTES * columns * pieces * width * vector


def _power_of_two(number: int, most: int) -> int:
    """The last one that is not above a number, up to a bound."""
    return most if number >= most else 1 << max(0, number.bit_length() - 1)
