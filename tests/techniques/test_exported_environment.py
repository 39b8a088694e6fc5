"""`sh launch.sh` where nothing is set: an export trains as its trial did, by each of its examples.

The learning rate is changed in the one place that the export's README names.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from parallel_cases import SIZES
from sample_study import LAPTOP, complete, summary
from small_models import write_config

import autotune
from autotune.answer.export import export_trial
from autotune.question.workload import Workload, load_model_shape
from autotune.space.strategy import Strategy
from autotune.trials.trial import Measurement, Outcome
from autotune.worker.model import build_model

pytestmark = pytest.mark.slow

_DATA = f"""
import sys
sys.path.insert(0, {str(Path(autotune.__file__).parents[1])!r})
import torch
tokens = torch.randint(0, 512, (8, 32), generator=torch.Generator().manual_seed(0))
dataset = [{{"input_ids": row, "labels": row}} for row in tokens]
batches = tokens.view(4, 2, 32)
"""

_TELL = """
import json
from autotune.machine.settings import settings_in
rates = [group.get("initial_lr", group["lr"]) for group in {optimizer}.param_groups]
told = {{"environment": settings_in(os.environ), "rates": rates}}
told["engine"] = type({engine}).__name__
told["shm"] = deepspeed.comm.comm.cdb.shm_comm_op is not None
with open("rank" + os.environ["RANK"] + ".json", "w") as file:
    json.dump(told, file)
torch.distributed.barrier()
os._exit(0)
"""

_NAMES = {
    "Plain DeepSpeed": {"engine": "engine", "optimizer": "engine.optimizer"},
    "HF Trainer": {
        "engine": "trainer.model_wrapped",
        "optimizer": "trainer.optimizer.optimizer",
    },
    "Accelerate": {"engine": "model", "optimizer": "optimizer.optimizer"},
}
"""What each example calls the engine that trains, and its optimizer."""


@pytest.fixture(scope="module")
def workload(tmp_path_factory: pytest.TempPathFactory) -> Workload:
    """A small model as a user has it: weights in a folder."""
    import torch

    folder = tmp_path_factory.mktemp("model")
    write_config(folder, "llama", **SIZES)
    found = Workload(model=load_model_shape(str(folder)), seq_len=32, global_batch_size=8)
    model = build_model(
        found,
        Strategy(precision="fp32"),
        device=torch.device("cpu"),
        deepspeed_config={},
        seed=0,
    )
    model.save_pretrained(folder)
    return found


@pytest.fixture(scope="module")
def measured(workload: Workload, run_trial: Callable[..., Outcome]) -> Measurement:
    """What a real trial showed, its environment with it."""
    found = run_trial(workload=workload, precision="fp32", zero_stage=1).measurement
    assert found is not None
    assert found.environment["DS_ACCELERATOR"] == "cpu"
    assert "OMP_NUM_THREADS" in found.environment
    return found


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("example", "optimizer"),
    [(name, "sgd") for name in _NAMES] + [("HF Trainer", "adamw_8bit")],
)
def test_an_export_has_its_trials_environment_and_one_learning_rate(
    tmp_path: Path, workload: Workload, measured: Measurement, example: str, optimizer: str
) -> None:
    strategy = Strategy.from_dict(
        {"precision": "fp32", "zero_stage": 1, "micro_batch_size": 2, "optimizer": optimizer}
    )
    trial = replace(complete(0, 1, 1, strategy=strategy), measurement=measured)
    study = replace(summary(trial, hardware=LAPTOP), workload=workload)
    folder = export_trial(study, trial, tmp_path / "export")

    guide = (folder / "README.md").read_text()
    named = re.search(r"Set yours in `(.*?)`", guide)
    assert named is not None
    place = folder / named[1]
    text, num_places = re.subn(r"\b1e-05|\b0\.00001", "0.25", place.read_text())
    assert num_places == 1
    place.write_text(text)

    section = guide[guide.index(f"## {example}") :]
    script = re.search(r"```python\n(.*?)```", section, re.DOTALL)
    assert script is not None
    (folder / "train.py").write_text(_DATA + script[1] + _TELL.format(**_NAMES[example]))

    home = tmp_path / "home"
    home.mkdir()
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    ran = subprocess.run(
        ["env", "-i", f"PATH={path}", f"HOME={home}", "sh", "launch.sh"],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout[-2000:] + ran.stderr[-4000:]
    ranks = [json.loads((folder / f"rank{rank}.json").read_text()) for rank in range(2)]
    for told in ranks:
        assert told["environment"] == measured.environment
        assert told["engine"] == "DeepSpeedEngine"
        assert told["rates"] == [0.25]
        assert told["shm"] is False
    assert list(home.rglob("*shm_comm*")) == []
