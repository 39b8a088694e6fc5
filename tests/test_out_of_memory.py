"""Out of memory for real: the trial that shows it, and the neighbours it rules out."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import optuna
import pytest
from planted_model import planted_workload

from autotune.cli.progress import PlainProgress
from autotune.drivers.budget import Budget
from autotune.drivers.context import DriverContext
from autotune.drivers.local import LocalDriver
from autotune.launch.launcher import Launcher
from autotune.machine.hardware import Hardware
from autotune.machine.software import Software
from autotune.predictor import AnalyticPredictor
from autotune.pruners import DominancePruner, PredictedMemoryPruner
from autotune.question.question import Question
from autotune.question.workload import Workload
from autotune.samplers import OptunaSampler, SamplerKind
from autotune.space.space_file import parse_search_space
from autotune.study.folder import StudyFolder
from autotune.study.stored import open_record
from autotune.study.study import Study
from autotune.trials.trial import FailureKind, TrialSpec, TrialState

pytestmark = pytest.mark.slow

_SPACE = """
knobs:
  zero_stage: [1]
  micro_batch_size: [1, 2, 4]
  checkpoint_interval: [2]
"""


def test_what_needs_more_than_a_strategy_that_ran_out_is_pruned_with_its_reason(
    tiny: Workload, cpu_hardware: Hardware, tmp_path: Path
) -> None:
    from rich.console import Console

    small = replace(cpu_hardware, device_memory_bytes=2 * 2**30)
    workload = planted_workload(tmp_path / "model", "hog_memory", tiny)
    space = parse_search_space(
        _SPACE, "space.yaml", workload, small, Software(versions={}, has_compiler=True)
    )
    question = Question(
        workload=workload, hardware=small, space_name=space.name, space_text=space.text
    )
    folder = StudyFolder(tmp_path / "study")
    folder.open(question)
    predictor = AnalyticPredictor(workload, small)
    study = Study(
        open_record(folder, space, question, None),
        sampler=OptunaSampler(space, kind=SamplerKind.GRID, seed=0),
        predictor=predictor,
        pruners=[
            PredictedMemoryPruner(question.memory_limit_bytes, host_memory_bytes=64 * 2**30),
            DominancePruner(),
        ],
    )
    budget = Budget(120.0)
    with Launcher(small, model_type="llama", folder=folder.path) as launcher:
        LocalDriver(
            launcher,
            DriverContext(
                budget=budget,
                spec_of=lambda trial: TrialSpec(
                    workload=workload, strategy=trial.strategy, num_ranks=2
                ),
                folder_of=folder.trial_folder,
                progress=PlainProgress(Console(stderr=True), budget),
                is_interrupted=lambda: False,
                trial_timeout_s=60.0,
            ),
        ).run(study)
    folder.close()

    out_of_memory = [trial for trial in study.trials if trial.was_launched]
    ruled_out = [trial for trial in study.trials if trial.state is TrialState.PRUNED]
    assert len(out_of_memory) + len(ruled_out) == len(study.trials) == 3
    for trial in out_of_memory:
        assert trial.failure is not None
        assert trial.failure.kind is FailureKind.HOST_OUT_OF_MEMORY
        assert trial.failure.rank == 1  # the one that hogs
    smallest = min(out_of_memory, key=lambda trial: trial.strategy.micro_batch_size)
    assert smallest.strategy.micro_batch_size == 1

    stored = optuna.load_study(study_name="study", storage=folder.storage_url).trials
    pruned = [trial for trial in stored if trial.state is optuna.trial.TrialState.PRUNED]
    assert {trial.number for trial in pruned} == {trial.number for trial in ruled_out}
    for trial in pruned:
        assert "ran out of host memory" in trial.user_attrs["reason"]
        assert "this strategy needs at least as much" in trial.user_attrs["reason"]
