"""Trials and a study made by hand, for tests of what comes after a search."""

from __future__ import annotations

from dataclasses import replace

from autotune.machine.hardware import DEVICE_KINDS, GIB, DeviceType, Hardware
from autotune.machine.software import Software
from autotune.question.question import Question
from autotune.question.workload import Method, Workload, load_model_shape
from autotune.space.strategy import Strategy
from autotune.study.summary import StudySummary
from autotune.trials.trial import (
    Failure,
    FailureKind,
    Measurement,
    Phase,
    Prediction,
    Trial,
    TrialState,
)

H100 = DEVICE_KINDS["H100-80GB"]
HARDWARE = Hardware(
    device_type=DeviceType.CUDA,
    device_kind=H100.name,
    num_devices=2,
    device_memory_bytes=80 * GIB,
    host_memory_bytes=512 * GIB,
    flops_per_s=H100.flops_per_s,
    memory_bytes_per_s=H100.memory_bytes_per_s,
)
LAPTOP = replace(HARDWARE, device_type=DeviceType.CPU, device_kind="cpu")
SOFTWARE = Software(versions={"torch": "2.13.0"}, has_liger=True, has_compiler=True)
WORKLOAD = Workload(model=load_model_shape("1.1B"), seq_len=1024, global_batch_size=64)
LORA_WORKLOAD = replace(WORKLOAD, method=Method.LORA, lora_rank=8)
QUESTION = Question(
    workload=WORKLOAD, hardware=HARDWARE, space_name="default", space_text="knobs: {}"
)


def prediction(gib: float) -> Prediction:
    peak = int(gib * GIB)
    return Prediction(
        peak_memory_bytes=peak,
        peak_memory_lower_bytes=peak,
        peak_memory_upper_bytes=peak,
        step_time_s=1.0,
        tokens_per_second=1000.0,
        moment="optimizer step",
        breakdown_bytes={"optimizer states": peak // 2, "activations": peak // 4},
    )


def complete(
    number: int,
    tokens_per_second: float,
    gib: float,
    *,
    strategy: Strategy | None = None,
    num_alloc_retries: int = 0,
    predicted_gib: float | None = None,
) -> Trial:
    peak = int(gib * GIB)
    return Trial(
        number=number,
        strategy=strategy or Strategy(),
        state=TrialState.COMPLETE,
        prediction=prediction(predicted_gib or gib),
        measurement=Measurement(
            tokens_per_second=tokens_per_second,
            step_times_s=(1.0, 1.2),
            peak_allocated_bytes=peak,
            peak_reserved_bytes=peak,
            peak_device_bytes=peak,
            num_alloc_retries=num_alloc_retries,
            losses=(10.5, float("nan")),
        ),
        duration_s=6.0,
        memory_limit_bytes=76 * GIB,
    )


def failed(number: int, kind: FailureKind, message: str = "no memory") -> Trial:
    return Trial(
        number=number,
        strategy=Strategy(micro_batch_size=number + 1),
        state=TrialState.FAILED,
        failure=Failure(kind=kind, message=message, phase=Phase.FORWARD, rank=0),
        duration_s=3.0,
        memory_limit_bytes=76 * GIB,
    )


def pruned(number: int, reason: str) -> Trial:
    return Trial(
        number=number,
        strategy=Strategy(micro_batch_size=number + 1),
        state=TrialState.PRUNED,
        reason=reason,
        memory_limit_bytes=76 * GIB,
    )


def summary(*trials: Trial, hardware: Hardware = HARDWARE) -> StudySummary:
    return StudySummary(
        name="llama",
        question={"model": "1.1B", "budget": "8m"},
        workload=WORKLOAD,
        hardware=hardware,
        reference=Strategy(),
        trials=trials,
        elapsed_s=120.0,
        versions={"torch": "2.13.0"},
    )
