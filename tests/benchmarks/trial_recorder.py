"""Runs strategies as trials on this machine and writes each down: predicted beside measured.

Predictions are made before each run. A record that was cut off goes on where it stops. On the CPU
a tiny model takes the place of every other, to try a script.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from autotune.errors import ConfigError
from autotune.launch.launcher import Launcher
from autotune.machine.hardware import DeviceType, Hardware, detect_hardware
from autotune.machine.software import detect_software
from autotune.predictor import AnalyticPredictor
from autotune.question.lengths import Lengths
from autotune.question.workload import Method, Workload, load_model_shape
from autotune.space.compatibility import conflict
from autotune.space.strategy import Strategy
from autotune.trials.trial import Outcome, Prediction, TrialSpec

GIB = 2**30
_LONGEST_TRIAL_S = 60
SEQ_LEN_ON_CPU = 64

Knobs = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Case:
    """One trial to run."""

    key: str
    """By which the record knows it."""
    model: str
    """A preset, or a folder with config.json."""
    method: Method
    seq_len: int
    global_batch_size: int
    """For each device."""
    knobs: Knobs
    more: Mapping[str, Any]
    """What else to write beside it."""
    timed_steps: int = 4
    """At most."""
    composes: bool = False
    """Whether a part only of long optimizer steps is run."""
    lengths: Lengths | None = None
    """Of the samples; None where all have `seq_len` tokens."""


def record(cases: Iterable[Case], out: Path, seconds: float) -> None:
    """Run what `out` does not hold yet, one JSON line each, and end before `seconds` are over."""
    end = time.monotonic() + seconds
    done = {line["key"] for line in read_records(out)}
    hardware, software = detect_hardware(), detect_software()
    folder = Path(tempfile.mkdtemp())
    with Launcher(hardware, model_type="llama", folder=folder) as launcher, out.open("a") as file:
        print(f"warm after {launcher.start():.1f} s", flush=True)
        for number, case in enumerate(cases):
            if case.key in done:
                continue
            left = end - time.monotonic()
            if left < _LONGEST_TRIAL_S / 4:
                print("the seconds are over", flush=True)
                return
            workload = _workload(case, hardware)
            line: dict[str, Any] = {
                "key": case.key,
                "model": workload.model.name,
                "method": str(case.method),
                "seq_len": workload.seq_len,
                "global_batch_size": workload.global_batch_size,
                "device_kind": hardware.device_kind,
                **case.more,
            }
            label = case.key
            try:
                strategy = Strategy.from_dict(case.knobs)
                label = f"{workload.model.name} {case.method}, {strategy}"
                refused = conflict(strategy, workload, hardware, software)
            except ConfigError as error:
                refused = str(error)
            if refused:
                line["refused"] = refused
                words = f"refused: {refused}"
            else:
                trial_folder = folder / str(number)
                trial_folder.mkdir()
                # Where it was predicted before, another prediction would cost time on the device.
                before = case.more.get("predicted_before")
                predicted = (
                    Prediction(**before)
                    if before
                    else AnalyticPredictor(workload, hardware).predict(strategy)
                )
                outcome = launcher.run(
                    TrialSpec(
                        workload=workload,
                        strategy=strategy,
                        num_ranks=hardware.num_devices,
                        timed_steps=case.timed_steps,
                        composes=case.composes,
                    ),
                    folder=trial_folder,
                    timeout_s=min(_LONGEST_TRIAL_S, left),
                )
                line["strategy"] = strategy.to_dict()
                if not before:
                    line["prediction"] = asdict(predicted)
                line["outcome"] = asdict(outcome)
                words = _words(predicted, outcome)
                errors = trial_folder / "rank0.err"
                if outcome.failure is not None and errors.exists():
                    line["error"] = errors.read_text(errors="replace")[-2000:]
            print(f"{label}: {words}", flush=True)
            file.write(json.dumps(line) + "\n")
            file.flush()


def read_records(out: Path) -> list[dict[str, Any]]:
    """The last record of each case."""
    lines = out.read_text(encoding="utf-8").splitlines() if out.exists() else []
    return list({line["key"]: line for line in map(json.loads, lines)}.values())


def _workload(case: Case, hardware: Hardware) -> Workload:
    is_cuda = hardware.device_type is DeviceType.CUDA
    model = load_model_shape(case.model if is_cuda else "tiny")
    return Workload(
        # A folder's path is of no use elsewhere.
        model=replace(model, name=Path(model.name).name),
        seq_len=case.seq_len if is_cuda else SEQ_LEN_ON_CPU,
        global_batch_size=case.global_batch_size * hardware.num_devices,
        method=case.method,
        lengths=case.lengths,
    )


def _words(predicted: Prediction, outcome: Outcome) -> str:
    words = f"{outcome.duration_s:.1f} s: "
    measured, failure = outcome.measurement, outcome.failure
    if measured is not None:
        words += (
            f"{measured.peak_allocated_bytes / GIB:.2f} allocated, "
            f"{measured.peak_reserved_bytes / GIB:.2f} reserved, "
            f"{measured.tokens_per_second:,.0f} tokens/s (predicted "
            f"{predicted.peak_allocated_bytes / GIB:.2f}, "
            f"{predicted.peak_memory_bytes / GIB:.2f}, {predicted.tokens_per_second:,.0f})"
        )
        if measured.padded_tokens_per_second is not None:
            words += f", {measured.padded_tokens_per_second:,.0f} with padding"
    elif failure is not None:
        words += f"{failure.kind} in {failure.phase}: {failure.message}"
    return words
