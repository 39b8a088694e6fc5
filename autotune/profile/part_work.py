"""The operations and memory traffic of the kernels of one part of a model.

Counts of operations of attention are those of PyTorch's own counter
(`torch/utils/flop_counter.py`), halved since attention is causal. Does not know how long anything
takes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

from autotune.profile.model_profile import MatMul, PartWork
from autotune.profile.tape import Kernel, Tape

__all__ = ["gives_weight_gradient", "is_matmul", "part_work"]

_MATMULS = ("mm", "addmm", "bmm", "baddbmm", "_grouped_mm")
_ATTENTION = "_scaled_dot_product"

_ATTENTION_PRODUCTS = {False: 2, True: 5}
"""Matrix products of a fused attention kernel, forward and backward: Dao, FlashAttention-2
(arXiv 2307.08691), section 4.1."""


def is_matmul(kernel: Kernel) -> bool:
    """Whether it is of matrix products, those of attention among them."""
    return kernel.name in _MATMULS or kernel.name.startswith(_ATTENTION)


def gives_weight_gradient(tape: Tape, kernel: Kernel) -> bool:
    """Whether it is what a weight's gradient is computed by: a product with no weight in it."""
    if kernel.name == "embedding_dense_backward":
        return True
    is_plain = kernel.name in ("mm", "addmm", "_grouped_mm")
    return is_plain and not any(tape.is_known(number) for number in kernel.reads)


def part_work(
    tape: Tape, labels: Iterable[Any], num_tokens: int, *, is_backward: bool
) -> PartWork:
    """All that was launched under these labels in one direction."""
    wanted = set(labels)
    kernels = [k for k in tape.kernels if k.label in wanted and k.is_backward is is_backward]
    shapes: Counter[tuple[int, int, int, str]] = Counter()
    attention_flops, traffic = 0.0, 0
    for kernel in kernels:
        if kernel.name in _MATMULS:
            shape, count = _shape(tape, kernel)
            shapes[shape] += count
        elif kernel.name.startswith(_ATTENTION):
            attention_flops += _attention_flops(kernel)
        else:
            traffic += kernel.moved_bytes
    return PartWork(
        matmuls=tuple(
            MatMul(m=m, n=n, k=k, tokens_on=side, count=count)
            for (m, n, k, side), count in sorted(shapes.items())
        ),
        attention_flops=attention_flops,
        traffic_bytes=traffic,
        num_kernels=len(kernels),
    )


def _shape(tape: Tape, kernel: Kernel) -> tuple[tuple[int, int, int, str], int]:
    """The product's sides, which of them is the tokens', and how many such there are."""
    *_, left, right = [shape for shape in kernel.shapes if len(shape) >= 2][:2]
    batch = left[0] if len(left) == 3 else 1
    m, k, n = left[-2], left[-1], right[-1]
    if batch > 1:
        return (m, n, k, "batch"), batch
    return (m, n, k, "k" if gives_weight_gradient(tape, kernel) else "m"), 1


def _attention_flops(kernel: Kernel) -> float:
    """Two operations for each of half the pairs of tokens, query head and element of a head."""
    query, key = kernel.shapes[:2] if not kernel.is_backward else kernel.shapes[1:3]
    batch, heads, length, head_dim = query
    pairs = batch * heads * length * key[-2] / 2
    return _ATTENTION_PRODUCTS[kernel.is_backward] * 2.0 * pairs * head_dim
