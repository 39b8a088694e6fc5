"""Real parts for the tests: a warm launcher with two CPU ranks, and trials run through it."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Mapping
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from autotune.launch.launcher import Launcher
from autotune.machine.cpu_precisions import cpu_precisions
from autotune.machine.hardware import DeviceType, Hardware
from autotune.question.workload import Method, Workload, load_model_shape
from autotune.space.strategy import Strategy
from autotune.trials.trial import Outcome, TrialSpec

os.environ["DS_ACCELERATOR"] = "cpu"
# As in an activated environment. Trials find this Python's ninja first; if a test's own processes
# found the system's, each would take the other's build of CPU Adam for outdated (their logs hash
# commands differently), and compile it again.
os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"

RunTrial = Callable[..., Outcome]


@pytest.fixture(scope="session")
def cpu_hardware() -> Hardware:
    """Two CPU ranks, 8 GiB each."""
    return Hardware(
        device_type=DeviceType.CPU,
        device_kind="cpu",
        num_devices=2,
        device_memory_bytes=8 * 2**30,
        host_memory_bytes=16 * 2**30,
        flops_per_s=5e10,
        memory_bytes_per_s=1e10,
    )


@pytest.fixture(scope="session")
def tiny() -> Workload:
    """The tiny preset, short and small."""
    return Workload(model=load_model_shape("tiny"), seq_len=32, global_batch_size=8)


@pytest.fixture(scope="session")
def launcher(
    cpu_hardware: Hardware, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Launcher]:
    """One warm server for the whole session."""
    folder = tmp_path_factory.mktemp("launcher")
    os.environ.setdefault("HF_MODULES_CACHE", str(folder / "modules"))
    with Launcher(cpu_hardware, model_type="llama", folder=folder) as warm:
        warm.start()
        yield warm


def _open_knobs(workload: Workload, knobs: Mapping[str, Any]) -> dict[str, Any]:
    """Knobs that a test leaves open: what proves nothing about bf16 runs in fp32 where that is
    many times as fast."""
    asks_for_16_bit = workload.method is Method.QLORA or any(
        name == "master_weights" or name.endswith("precision") for name in knobs
    )
    if asks_for_16_bit or cpu_precisions().bf16:
        return {"micro_batch_size": 2}
    return {"micro_batch_size": 2, "precision": "fp32"}


@pytest.fixture(scope="session")
def run_trial(
    launcher: Launcher, tiny: Workload, tmp_path_factory: pytest.TempPathFactory
) -> RunTrial:
    """Runs one strategy for real: `run_trial(workload=..., timeout_s=..., zero_stage=1, ...)`."""
    numbers = count()

    def run(
        *,
        workload: Workload = tiny,
        timeout_s: float = 240.0,
        folder: Path | None = None,
        num_ranks: int = 2,
        timed_steps: int = 2,
        learning_rate: float = 1e-5,
        composes: bool = False,
        **knobs: Any,
    ) -> Outcome:
        spec = TrialSpec(
            workload=workload,
            strategy=Strategy.from_dict(_open_knobs(workload, knobs) | knobs),
            num_ranks=num_ranks,
            warmup_steps=2,
            timed_steps=timed_steps,
            relative_half_width=0.0,
            composes=composes,
            learning_rate=learning_rate,
        )
        where = folder or tmp_path_factory.mktemp(f"trial{next(numbers)}")
        return launcher.run(spec, folder=where, timeout_s=timeout_s)

    return run
