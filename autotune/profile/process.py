"""Profiles by a process of its own: neither torch nor Liger's patches come into this one.

Asks memory first, then the disk, then traces. Does not know what a profile is used for.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from autotune.profile.model_profile import ModelProfile
from autotune.profile.store import read_profile, write_profile
from autotune.profile.variant import Variant, digest
from autotune.workload import ModelShape

__all__ = ["profile_of"]

_TIMEOUT_S = 180.0
"""Importing transformers takes some seconds, a trace less than one: two orders of margin."""

_known: dict[str, ModelProfile | str] = {}
"""What this process has asked for already: the profile, or why there is none."""


def profile_of(shape: ModelShape, variant: Variant, seq_len: int) -> ModelProfile | str:
    """The profile of one variant of a model, or in words why it cannot be traced.

    Args:
        shape: the model; with its whole configuration.
        variant: how it is trained.
        seq_len: tokens of a sample.
    """
    if shape.source is not None:
        return "its own code is not run to plan"
    name = digest(shape.config, seq_len, variant)
    if name not in _known:
        _known[name] = read_profile(name) or _trace(shape, variant, seq_len)
        found = _known[name]
        if isinstance(found, ModelProfile):
            write_profile(name, found)
    return _known[name]


def _trace(shape: ModelShape, variant: Variant, seq_len: int) -> ModelProfile | str:
    request = {"shape": asdict(shape), "variant": asdict(variant), "seq_len": seq_len}
    with tempfile.TemporaryDirectory() as folder:
        answer = Path(folder) / "profile.json"
        try:
            ran = subprocess.run(
                [sys.executable, "-m", "autotune.profile", str(answer)],
                input=json.dumps(request),
                capture_output=True,
                text=True,
                timeout=_TIMEOUT_S,
                env=_environment(os.environ),
                check=False,
            )
            return ModelProfile.from_dict(json.loads(answer.read_text(encoding="utf-8")))
        except subprocess.TimeoutExpired:
            return f"it took more than {_TIMEOUT_S:.0f} s"
        except (OSError, ValueError, KeyError, TypeError):
            return _last_line(ran.stderr.splitlines())


def _environment(own: Mapping[str, str]) -> dict[str, Any]:
    """As here, without devices, which are not needed, and without the network."""
    return {**own, "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1", "DS_ACCELERATOR": "cpu"}


def _last_line(lines: Sequence[str]) -> str:
    """What a traceback ends with."""
    written = [line for line in lines if line.strip()]
    return written[-1] if written else "the process that traces it ended without a word"
