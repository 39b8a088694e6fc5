"""What a model keeps and computes, read from its real code without memory for it.

Imports no torch: a process of its own does the tracing.
"""

from autotune.profile.model_profile import (
    PARTS,
    LayerProfile,
    MatMul,
    ModelProfile,
    PartWork,
    Saved,
)
from autotune.profile.process import profile_of
from autotune.profile.variant import Variant

__all__ = [
    "PARTS",
    "LayerProfile",
    "MatMul",
    "ModelProfile",
    "PartWork",
    "Saved",
    "Variant",
    "profile_of",
]
