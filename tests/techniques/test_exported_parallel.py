"""An export's own guide trains in plain DeepSpeed: ranks that share samples, fp16 without ZeRO."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from parallel_cases import SIZES
from plain_training import printed_losses
from sample_study import LAPTOP, complete, summary
from small_models import write_config

from autotune.answer.export import export_trial
from autotune.question.workload import Workload, load_model_shape
from autotune.space.strategy import Strategy
from autotune.worker.model import build_model

pytestmark = pytest.mark.slow

_BATCHES = """
two = torch.randint(0, 512, (2, 2, 32), generator=torch.Generator().manual_seed(0))
batches = two.repeat(3, 1, 1)
"""

_PRINT = """
    total = loss.detach().clone()
    torch.distributed.all_reduce(total)
    if torch.distributed.get_rank() == 0:
        print("LOSS", float(total), flush=True)
os._exit(0)
"""


def _workload(folder: Path) -> Workload:
    return Workload(model=load_model_shape(str(folder)), seq_len=32, global_batch_size=4)


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model as a user has it: weights in a folder."""
    import torch

    folder = tmp_path_factory.mktemp("model")
    write_config(folder, "llama", **SIZES)
    model = build_model(
        _workload(folder),
        Strategy(precision="fp32"),
        device=torch.device("cpu"),
        deepspeed_config={},
        seed=0,
    )
    model.save_pretrained(folder)
    return folder


def _losses(folder: Path, model_folder: Path, num_ranks: int, **knobs: Any) -> list[float]:
    """What the ranks of an export's guide, run as it stands, have as losses, added up."""
    strategy = Strategy.from_dict(
        {"precision": "fp32", "micro_batch_size": 2, "optimizer": "sgd"} | knobs
    )
    trial = complete(0, 1, 1, strategy=strategy)
    hardware = replace(LAPTOP, num_devices=num_ranks)
    study = replace(summary(trial, hardware=hardware), workload=_workload(model_folder))
    export = export_trial(study, trial, folder / "export")
    for file in ("ds_config.json", "strategy.yaml"):
        path = export / file
        path.write_text(re.sub(r"1e-05|0\.00001", "1.0", path.read_text()))
    example = re.search(r"```python\n(.*?)```", (export / "README.md").read_text(), re.DOTALL)
    assert example is not None
    (export / "train.py").write_text("import os, torch\n" + _BATCHES + example[1] + _PRINT)
    return printed_losses(export, num_ranks=num_ranks)


@pytest.mark.timeout(400)
def test_the_guide_trains_with_the_losses_of_one_rank(tmp_path: Path, model_folder: Path) -> None:
    one = _losses(tmp_path / "one", model_folder, 1)
    assert len(one) == 6
    tensor = _losses(tmp_path / "t", model_folder, 2, tensor_parallel_size=2, zero_stage=1)
    # Each rank of a tensor group has the whole loss.
    assert [total / 2 for total in tensor] == pytest.approx(one, rel=1e-4)
    sequence = _losses(tmp_path / "s", model_folder, 2, sequence_parallel_size=2, zero_stage=3)
    # Each rank of a sequence group has its share, which ZeRO-3 has to be given twice as large.
    assert [total / 2 for total in sequence] == pytest.approx(one, rel=1e-4)


@pytest.mark.timeout(400)
def test_the_guide_trains_in_fp16_without_zero(tmp_path: Path, model_folder: Path) -> None:
    plain = _losses(tmp_path / "plain", model_folder, 2)
    # The second of two batches, for the third time.
    assert plain[-1] < 0.98 * plain[1]
    knobs = {"attention_precision": "fp16", "mlp_precision": "fp16"}
    groups = _losses(tmp_path / "groups", model_folder, 2, **knobs)
    alone = _losses(tmp_path / "alone", model_folder, 2, precision="fp16")
    assert groups == pytest.approx(plain, rel=1e-3)
    assert alone == pytest.approx(plain, rel=1e-3)
    assert plain not in (groups, alone)
