"""The decoder layers of each stage of a pipeline.

Counts only: knows no model and no torch, so that a prediction divides as a trial does.
"""

from __future__ import annotations

__all__ = ["divide_layers"]


def divide_layers(
    num_layers: int, num_stages: int, *, before: float = 0.0, after: float = 0.0
) -> tuple[range, ...]:
    """The layers of each stage, such that the heaviest stage is as light as it can be.

    Args:
        num_layers: decoder layers, all of one weight; at least one for each stage.
        num_stages: stages of the pipeline.
        before: weight of what the first stage holds besides (the embedding), in layers.
        after: weight of what the last stage holds besides (final norm, head), in layers.
    """
    assert 1 <= num_stages <= num_layers, "each stage needs a layer"
    weights = [1.0] * num_stages
    weights[0] += before
    weights[-1] += after
    sizes = [1] * num_stages
    for _ in range(num_layers - num_stages):
        # Of equals the last one: it keeps the activations of the fewest micro-batches.
        lightest = min(reversed(range(num_stages)), key=weights.__getitem__)
        sizes[lightest] += 1
        weights[lightest] += 1
    ends = [sum(sizes[: stage + 1]) for stage in range(num_stages)]
    return tuple(range(end - size, end) for size, end in zip(sizes, ends, strict=True))
