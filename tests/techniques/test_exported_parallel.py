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
"""

_ONE_AFTER_ANOTHER = """
import os, runpy, sys
for export in sys.argv[1:]:
    os.chdir(export)
    runpy.run_path("train.py", run_name="__main__")
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


def _exported(folder: Path, model_folder: Path, num_ranks: int, **knobs: Any) -> Path:
    """An export with its guide's script, which prints the ranks' losses added up."""
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
    return export


def _losses(folder: Path, exports: list[Path], num_ranks: int) -> list[list[float]]:
    """What each of the guides, run as it stands, has as losses; by the same ranks in turn."""
    (folder / "train.py").write_text(_ONE_AFTER_ANOTHER)
    losses = printed_losses(folder, *map(str, exports), num_ranks=num_ranks)
    assert len(losses) == 6 * len(exports)
    return [losses[start : start + 6] for start in range(0, len(losses), 6)]


@pytest.mark.timeout(400)
def test_the_guide_trains_with_the_losses_of_one_rank(tmp_path: Path, model_folder: Path) -> None:
    def trained(name: str, num_ranks: int, **knobs: Any) -> list[float]:
        export = _exported(tmp_path / name, model_folder, num_ranks, **knobs)
        return _losses(tmp_path / name, [export], num_ranks)[0]

    one = trained("one", 1)
    tensor = trained("t", 2, tensor_parallel_size=2, zero_stage=1)
    # Each rank of a tensor group has the whole loss.
    assert [total / 2 for total in tensor] == pytest.approx(one, rel=1e-4)
    sequence = trained("s", 2, sequence_parallel_size=2, zero_stage=3)
    # Each rank of a sequence group has its share, which ZeRO-3 has to be given twice as large.
    assert [total / 2 for total in sequence] == pytest.approx(one, rel=1e-4)


@pytest.mark.timeout(400)
def test_the_guide_trains_in_fp16_without_zero(tmp_path: Path, model_folder: Path) -> None:
    cases: dict[str, dict[str, Any]] = {
        "plain": {},
        "groups": {"attention_precision": "fp16", "mlp_precision": "fp16"},
        "alone": {"precision": "fp16"},
    }
    exports = [
        _exported(tmp_path / name, model_folder, 2, **knobs) for name, knobs in cases.items()
    ]
    plain, groups, alone = _losses(tmp_path, exports, 2)
    # The second of two batches, for the third time.
    assert plain[-1] < 0.98 * plain[1]
    assert groups == pytest.approx(plain, rel=1e-3)
    assert alone == pytest.approx(plain, rel=1e-3)
    assert plain not in (groups, alone)
