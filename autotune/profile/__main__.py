"""Traces variants of a model: reads the question from stdin, writes a line for each result.

    python -m autotune.profile PID < QUESTION.json

For `process.py`, which starts it and gives its process id. A line of JSON on stdout holds a
profile, or a script where a recipe is asked for, or in words why there is none. Nothing is written
to disk, so nothing is left there by whoever is killed.

What a trace may take is counted in processor time: on a loaded machine it takes longer, and ends
all the same.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from autotune.lifeline import end_with_parent

if __name__ == "__main__":
    # Imports take longest: whoever is killed meanwhile must not leave them running.
    end_with_parent(int(sys.argv[1]))

import torch  # noqa: F401  (before Triton's stand-in, which torch would take for the real one)

from autotune.knob_values import Attention, CheckpointScope, Experts
from autotune.profile.liger import stand_in_for_triton
from autotune.profile.script_trace import trace_script
from autotune.profile.trace import trace
from autotune.profile.variant import Recipe, Variant
from autotune.question.workload import ModelShape

_MOST_S = 180.0
"""Processor time of one variant. A trace takes one to thirty seconds."""

_AGAIN_S = 5.0
"""Until it is told once more to end, should the code that is followed have caught the first."""

_IDLE_S, _LOOKS = 10.0, 18
"""A process that has done nothing at so many looks, so far apart, waits for what never comes."""


def main() -> None:
    """Trace what stdin asks for, one after the other."""
    # Whatever the code of a model prints goes to stderr, not between the answers.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    question = json.load(sys.stdin)
    _end_what_hangs(len(question["variants"]))
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
        with _at_most(_MOST_S):
            if isinstance(variant, Recipe):
                return trace_script(shape, variant, seq_len).to_dict()
            return trace(shape, variant, seq_len).to_dict()
    except _TooLongError as error:
        return str(error)
    except Exception as error:
        # Code of any architecture runs here; the next variant is not the worse for it.
        lines = str(error).strip().splitlines()
        return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


class _TooLongError(Exception):
    """A variant has had its time."""


@contextmanager
def _at_most(seconds: float) -> Iterator[None]:
    """Raise `_TooLongError` in what takes more processor time than this."""

    def end(*_: object) -> None:
        raise _TooLongError(f"tracing it took more than {seconds:g} s of CPU time")

    signal.signal(signal.SIGPROF, end)
    signal.setitimer(signal.ITIMER_PROF, seconds, _AGAIN_S)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


def _end_what_hangs(num_variants: int) -> None:
    """End this process where no signal handler of Python's runs, or where it does nothing."""
    most = int((1 + num_variants) * (_MOST_S + 4 * _AGAIN_S))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CPU, (most, most + int(_AGAIN_S)))
    threading.Thread(target=_end_if_idle, daemon=True).start()


def _end_if_idle() -> None:
    num_idle, before_s = 0, time.process_time()
    while num_idle < _LOOKS:
        # Looks are counted, not seconds: a process that is stopped does not look.
        time.sleep(_IDLE_S)
        now_s = time.process_time()
        num_idle = num_idle + 1 if now_s - before_s < _IDLE_S / 1000 else 0
        before_s = now_s
    print(f"it did nothing for {_LOOKS * _IDLE_S:g} s", file=sys.stderr, flush=True)
    os._exit(1)


def _variant(told: dict[str, Any]) -> Variant:
    attention, targets = Attention(told["attention"]), tuple(told["lora_targets"])
    experts = Experts(told["experts"])
    return Variant(**{**told, "attention": attention, "lora_targets": targets, "experts": experts})


def _recipe(told: dict[str, Any]) -> Recipe:
    scope = CheckpointScope(told["checkpoint_scope"])
    return Recipe(**{**told, "variant": _variant(told["variant"]), "checkpoint_scope": scope})


if __name__ == "__main__":
    main()
