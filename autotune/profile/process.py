"""Traces profiles and scripts in a separate process, which alone loads torch and Liger's patches.

Asks memory first, then the disk, then traces. Does not know what they are used for.
"""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any, TypeVar

from autotune.knob_values import Attention, CheckpointScope
from autotune.profile.model_profile import ModelProfile
from autotune.profile.script import AllocationScript
from autotune.profile.store import read_profile, read_script, write_record
from autotune.profile.variant import Recipe, Variant, digest
from autotune.question.workload import ModelShape

__all__ = ["known_profile_of", "known_script_of", "profile_of", "script_of"]

_known: dict[str, ModelProfile | str] = {}
"""Profiles that this process has asked for already: the profile, or why there is none."""

_known_scripts: dict[str, AllocationScript | str] = {}
"""Scripts that this process has asked for already: the script, or why there is none."""

_Traced = TypeVar("_Traced", ModelProfile, AllocationScript)


def profile_of(shape: ModelShape, variant: Variant, seq_len: int) -> ModelProfile | str:
    """The profile of one variant of a model, or in words why it cannot be traced.

    Args:
        shape: the model; with its whole configuration.
        variant: how it is trained.
        seq_len: tokens of a sample.
    """
    if shape.source is not None:
        return "its own code is not run for predictions"
    if variant.fused_kernels and not _has_liger():
        return "Liger is not installed here"
    name = digest(shape.config, seq_len, variant)
    if name not in _known:
        stored = read_profile(name)
        if stored is not None:
            _known[name] = stored
        else:
            _trace_with_siblings(shape, variant, seq_len)
    return _known[name]


def known_profile_of(shape: ModelShape, variant: Variant, seq_len: int) -> ModelProfile | str:
    """The profile, if it was traced before, here or in an earlier process; traces nothing."""
    if shape.source is not None:
        return "its own code is not run for predictions"
    if variant.fused_kernels and not _has_liger():
        return "Liger is not installed here"
    name = digest(shape.config, seq_len, variant)
    return _known.get(name) or read_profile(name) or "its code was not traced for this"


def script_of(shape: ModelShape, recipe: Recipe, seq_len: int) -> AllocationScript | str:
    """What a model allocates that is trained by a recipe, or in words why it is not known.

    Args:
        shape: the model; with its whole configuration.
        recipe: how it is trained.
        seq_len: tokens of a sample.
    """
    known = known_script_of(shape, recipe, seq_len)
    if known is not None:
        return known
    every = dict.fromkeys((recipe, *_siblings(recipe)))
    # Liger's patches stay for a process's life, so what has them comes last.
    recipes = sorted(every, key=lambda one: one.variant.fused_kernels)
    for one, found in zip(recipes, _trace(AllocationScript, shape, recipes, seq_len), strict=True):
        name = digest(shape.config, seq_len, one)
        _known_scripts[name] = found
        if isinstance(found, AllocationScript):
            write_record(name, found)
    return _known_scripts[digest(shape.config, seq_len, recipe)]


def known_script_of(
    shape: ModelShape, recipe: Recipe, seq_len: int
) -> AllocationScript | str | None:
    """The script, if it was traced before; else None."""
    if shape.source is not None:
        return "its own code is not run for predictions"
    if recipe.variant.fused_kernels and not _has_liger():
        return "Liger is not installed here"
    name = digest(shape.config, seq_len, recipe)
    if name not in _known_scripts:
        stored = read_script(name)
        if stored is None:
            return None
        _known_scripts[name] = stored
    return _known_scripts[name]


def _siblings(recipe: Recipe) -> list[Recipe]:
    """What is asked for next, mostly: without and with checkpoints, and Liger's kernels.

    Imports take longest.
    """
    kinds = (False, True) if _has_liger() else (False,)
    return [
        Recipe(
            variant=replace(recipe.variant, fused_kernels=is_fused),
            checkpoint_interval=interval,
            checkpoint_scope=CheckpointScope.LAYER,
            mlp_tiles=1,
            loss_tiles=1,
        )
        for is_fused in kinds
        for interval in (0, 1)
    ]


def _trace_with_siblings(shape: ModelShape, variant: Variant, seq_len: int) -> None:
    """Trace the other kernels as well, which most searches ask for next: imports take longest."""
    others = [
        replace(variant, attention=attention, fused_kernels=is_fused)
        for attention in Attention
        for is_fused in (False, _has_liger())
    ]
    # Liger's patches stay for a process's life, so what has them comes last.
    variants = sorted(dict.fromkeys((variant, *others)), key=lambda one: one.fused_kernels)
    for one, found in zip(variants, _trace(ModelProfile, shape, variants, seq_len), strict=True):
        name = digest(shape.config, seq_len, one)
        _known[name] = found
        if isinstance(found, ModelProfile):
            write_record(name, found)


def _trace(
    kind: type[_Traced], shape: ModelShape, variants: Sequence[Variant | Recipe], seq_len: int
) -> list[_Traced | str]:
    question = {
        "shape": asdict(shape),
        "variants": [asdict(variant) for variant in variants],
        "seq_len": seq_len,
    }
    answers = b""
    try:
        ran = subprocess.run(
            [sys.executable, "-m", "autotune.profile", str(os.getpid())],
            input=json.dumps(question).encode(),
            capture_output=True,
            env=_environment(os.environ),
            check=False,
        )
        answers, reason = ran.stdout, _reason(ran)
    except OSError as error:
        reason = str(error)
    # A line that was cut off has no end, and is no answer.
    lines = answers.split(b"\n")[:-1][: len(variants)]
    found = [_read(kind, line, reason) for line in lines]
    return found + [reason] * (len(variants) - len(found))


def _read(kind: type[_Traced], line: bytes, reason: str) -> _Traced | str:
    """What the process said of one variant; `reason` where that makes no sense."""
    try:
        answer = json.loads(line)
        return str(answer) if isinstance(answer, str) else kind.from_dict(answer)
    except (ValueError, KeyError, TypeError):
        return reason


def _has_liger() -> bool:
    return importlib.util.find_spec("liger_kernel") is not None


def _environment(own: Mapping[str, str]) -> dict[str, Any]:
    """As here, without devices, which are not needed, and without the network."""
    return {**own, "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1", "DS_ACCELERATOR": "cpu"}


def _reason(ran: subprocess.CompletedProcess[bytes]) -> str:
    """Why it ended: what a traceback ends with, or the signal. How long it takes is up to it."""
    if ran.returncode < 0:
        name = signal.Signals(-ran.returncode).name
        return f"the process that traces it was ended by {name}"
    lines = ran.stderr.decode(errors="replace").splitlines()
    written = [line for line in lines if line.strip()]
    return written[-1] if written else "the process that traces it ended without a message"
