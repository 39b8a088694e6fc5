"""The part of counted memory that is certain: the lower bound of a peak.

Does not know what is counted.
"""

from __future__ import annotations

from collections.abc import Mapping

__all__ = ["DOUBTED_SHARE", "LEAST_SHARES", "LEAST_SHARE_CPU"]

LEAST_SHARES: Mapping[str, float] = {
    "weights": 0.98,
    "second copy of weights": 0.9,
    "master weights": 0.98,
    "optimizer states": 0.98,
    "offload buffers": 0.5,
    "workspace": 0.25,
    "gradients": 0.9,
    "gradient buckets": 0.5,
    "activations": 0.85,
    "logits": 0.85,
    "gathered weights": 0.0,
    "flattened weights": 0.0,
}
"""The part of each that is sure to be there: arithmetic is sure, a layer's unusual code is not."""

DOUBTED_SHARE = 0.75
"""Of activations that were counted for another architecture than the model's.

Measured: of ten architectures on one H100 GPT-2 was missed by most, 0.7 of what was counted."""

LEAST_SHARE_CPU = 0.6
"""The CPU counts pages that were touched, and its kernels keep other things for backward."""
