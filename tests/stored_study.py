"""A study as a search leaves it, written without one: a folder with one measured trial."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

from autotune.machine.hardware import detect_hardware
from autotune.machine.software import detect_software
from autotune.question.question import Question
from autotune.question.workload import Workload, load_model_shape
from autotune.space.space_file import load_search_space
from autotune.study.folder import StudyFolder
from autotune.study.stored import open_record
from autotune.trials.trial import Measurement, Outcome, Prediction

__all__ = ["store_study"]

_GIB = 2**30


def store_study(path: Path, storage: str | None = None) -> Path:
    """Write a study of the tiny preset on two CPU ranks.

    Args:
        path: its folder.
        storage: the URL of its trials; the folder's own file if left out.
    """
    hardware, software = replace(detect_hardware(2), supports_bf16=True), detect_software()
    workload = Workload(model=load_model_shape("tiny"), seq_len=32, global_batch_size=8)
    space = load_search_space("default", workload, hardware, software)
    question = Question(
        workload=workload, hardware=hardware, space_name=space.name, space_text=space.text
    )
    folder = StudyFolder(path)
    folder.open(question)
    record = open_record(folder, space, question, storage)
    trial = record.start(
        space.reference,
        Prediction(
            peak_memory_bytes=_GIB,
            peak_memory_lower_bytes=_GIB,
            peak_memory_upper_bytes=_GIB,
            step_time_s=1.0,
            tokens_per_second=1000.0,
            moment="optimizer step",
            breakdown_bytes={"optimizer states": _GIB},
        ),
    )
    measured = Measurement(
        tokens_per_second=1000.0,
        step_times_s=(1.0, 1.0),
        peak_allocated_bytes=_GIB,
        peak_reserved_bytes=_GIB,
        peak_device_bytes=_GIB,
        num_alloc_retries=0,
        losses=(10.0, math.nan),
    )
    record.finish(trial, Outcome(measurement=measured, duration_s=6.0))
    record.close()
    folder.write_environment({"versions": software.versions, "elapsed_s": 12.0})
    folder.close()
    return path
