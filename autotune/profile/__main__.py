"""Traces variants of a model: reads the question from stdin, writes a line for each as it is done.

    python -m autotune.profile PID < QUESTION.json

For `process.py`, which starts it and gives its process id. A line of JSON on stdout holds a
profile, or a script where a recipe is asked for, or in words why there is none. Nothing is written
to disk, so nothing is left there by whoever is killed.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

from autotune.lifeline import end_with_parent

if __name__ == "__main__":
    # Imports take longest: whoever is killed meanwhile must not leave them running.
    end_with_parent(int(sys.argv[1]))

import torch  # noqa: F401  (before Triton's stand-in, which torch would take for the real one)

from autotune.knobs import Attention, CheckpointScope
from autotune.profile.liger import stand_in_for_triton
from autotune.profile.script_trace import trace_script
from autotune.profile.trace import trace
from autotune.profile.variant import Recipe, Variant
from autotune.question.workload import ModelShape


def main() -> None:
    """Trace what stdin asks for, one after the other."""
    # Whatever the code of a model prints goes to stderr, not between the answers.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    question = json.load(sys.stdin)
    shape, seq_len = ModelShape(**question["shape"]), question["seq_len"]
    has_stand_in = False
    for told in question["variants"]:
        recipe = _recipe(told) if "variant" in told else None
        variant = recipe.variant if recipe else _variant(told)
        if variant.fused_kernels and not has_stand_in:
            stand_in_for_triton()
            has_stand_in = True
        print(json.dumps(_answer(shape, recipe or variant, seq_len)), file=answers, flush=True)


def _answer(shape: ModelShape, variant: Variant | Recipe, seq_len: int) -> dict[str, Any] | str:
    try:
        if isinstance(variant, Recipe):
            return trace_script(shape, variant, seq_len).to_dict()
        return trace(shape, variant, seq_len).to_dict()
    except Exception as error:
        # Code of any architecture runs here; the next variant is not the worse for it.
        lines = str(error).strip().splitlines()
        return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def _variant(told: dict[str, Any]) -> Variant:
    attention, targets = Attention(told["attention"]), tuple(told["lora_targets"])
    return Variant(**{**told, "attention": attention, "lora_targets": targets})


def _recipe(told: dict[str, Any]) -> Recipe:
    scope = CheckpointScope(told["checkpoint_scope"])
    return Recipe(**{**told, "variant": _variant(told["variant"]), "checkpoint_scope": scope})


if __name__ == "__main__":
    main()
