"""The memory and the work of a model, traced from its real code without memory for it.

Imports no torch: a process of its own does the tracing.
"""

from autotune.profile.ahead import ScriptsAhead
from autotune.profile.model_profile import (
    PARTS,
    LayerProfile,
    MatMul,
    ModelProfile,
    PartWork,
    Saved,
)
from autotune.profile.process import known_profile_of, known_script_of, profile_of, script_of
from autotune.profile.script import AllocationScript
from autotune.profile.variant import Recipe, Variant

__all__ = [
    "PARTS",
    "AllocationScript",
    "LayerProfile",
    "MatMul",
    "ModelProfile",
    "PartWork",
    "Recipe",
    "Saved",
    "ScriptsAhead",
    "Variant",
    "known_profile_of",
    "known_script_of",
    "profile_of",
    "script_of",
]
