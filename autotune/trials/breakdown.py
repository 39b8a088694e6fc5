"""The parts of a predicted peak, in the rows that people read.

The predictor has finer parts; here they are added up under the names of the field. Does not know
how any of them is computed.
"""

from __future__ import annotations

from autotune.trials.trial import Prediction

__all__ = ["allocated_bytes", "breakdown_rows"]

_WORKSPACE = "workspace and allocator"
_CONTEXT = "context"
"""What the driver counts beside the allocator's pool; paged optimizer states are part of it."""

_ENGINE = "buckets and engine buffers"

_SLACK = ("allocator", "process")
"""Parts that are no live tensors."""

_ROW_OF_PART = {
    "weights": "parameters",
    "second copy of weights": "parameters",
    "gradients": "gradients",
    "master weights": "master weights",
    "optimizer states": "optimizer states",
    "paged optimizer states": "optimizer states",
    "activations": "activations",
    "logits": "logits and loss",
    "gradient buckets": _ENGINE,
    "offload buffers": _ENGINE,
    "gathered weights": _ENGINE,
    "flattened weights": "flattened parameters",
    "workspace": _WORKSPACE,
    "allocator": _WORKSPACE,
    "process": _WORKSPACE,
}
"""The row of each part that a predictor names. A part that is not here has a row of its own."""


def breakdown_rows(prediction: Prediction) -> dict[str, int]:
    """Bytes of the worst device at its peak, by row; they sum up to `peak_device_bytes`.

    All rows are there, in an order that does not depend on the strategy; what it does not need
    is 0.
    """
    rows = dict.fromkeys((*_ROW_OF_PART.values(), _CONTEXT), 0)
    for part, size in prediction.breakdown_bytes.items():
        row = _ROW_OF_PART.get(part, part)
        rows[row] = rows.get(row, 0) + size
    rows[_CONTEXT] += prediction.device_overhead_bytes
    return rows


def allocated_bytes(prediction: Prediction) -> int:
    """The expected peak of live tensors; of older records, from what they say it is made of."""
    if prediction.peak_allocated_bytes:
        return prediction.peak_allocated_bytes
    slack = sum(prediction.breakdown_bytes.get(part, 0) for part in _SLACK)
    return prediction.peak_memory_bytes - slack
