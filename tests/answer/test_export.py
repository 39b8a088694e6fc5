from __future__ import annotations

import ast
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from sample_study import HARDWARE, LAPTOP, LORA_WORKLOAD, complete, failed, summary

from autotune.answer.export import export_trial
from autotune.errors import ConfigError, StorageError
from autotune.knobs import GroupPrecision, Optimizer
from autotune.question.workload import Method
from autotune.space.deepspeed_config import deepspeed_config
from autotune.space.strategy import Strategy
from autotune.space.strategy_file import read_strategy_file
from autotune.trials.trial import FailureKind

STRATEGY = Strategy(zero_stage=2, micro_batch_size=8, checkpoint_interval=2)
TRIAL = complete(7, 45_000, 60, strategy=STRATEGY)
STUDY = summary(TRIAL)


def test_ds_config_is_what_the_trial_ran_with(tmp_path: Path) -> None:
    folder = export_trial(STUDY, TRIAL, tmp_path / "best")
    config = json.loads((folder / "ds_config.json").read_text())
    assert config == deepspeed_config(
        STUDY.workload, STRATEGY, num_devices=2, device_type=HARDWARE.device_type
    )


def test_strategy_file_reads_back_as_the_trials_strategy(tmp_path: Path) -> None:
    folder = export_trial(STUDY, TRIAL, tmp_path / "best")
    exported = read_strategy_file(folder / "strategy.yaml")
    assert exported.strategy == STRATEGY
    assert exported.method is Method.FULL
    assert exported.seq_len == STUDY.workload.seq_len


def test_provenance_says_where_the_strategy_comes_from(tmp_path: Path) -> None:
    folder = export_trial(STUDY, TRIAL, tmp_path / "best")
    record = json.loads((folder / "provenance.json").read_text())
    assert record["study"] == "llama"
    assert record["trial"]["number"] == 7
    assert record["trial"]["measurement"]["tokens_per_second"] == 45_000
    assert record["trial"]["prediction"]["peak_memory_bytes"] > 0
    assert record["trial"]["loss_class"] == "neutral"
    assert record["versions"] == {"torch": "2.13.0"}
    assert record["hardware"]["device_kind"] == "H100-80GB"
    assert record["exported_at"]


def test_launch_script_starts_one_rank_for_each_gpu(tmp_path: Path) -> None:
    folder = export_trial(STUDY, TRIAL, tmp_path / "best")
    script = (folder / "launch.sh").read_text()
    assert "\ndeepspeed --num_gpus 2 train.py --deepspeed ds_config.json" in script


def test_launch_script_on_the_cpu_chooses_the_accelerator(tmp_path: Path) -> None:
    folder = export_trial(summary(TRIAL, hardware=LAPTOP), TRIAL, tmp_path / "best")
    script = (folder / "launch.sh").read_text()
    assert "DS_ACCELERATOR=cpu deepspeed --num_accelerators 2 train.py" in script


def test_names_of_folders_steer_neither_a_script_nor_html(tmp_path: Path) -> None:
    trial = replace(TRIAL, reused_from="trial 1 of <script>\x1b[31m")
    study = replace(summary(trial), name="<b>\ncommand")
    readme = (export_trial(study, trial, tmp_path / "best") / "README.md").read_text()
    assert "study &lt;b&gt;\\u000acommand:" in readme
    assert "by trial 1 of &lt;script&gt;\\u001b[31m." in readme
    with pytest.raises(ConfigError, match="the device kind "):
        replace(LAPTOP, device_kind="X\ncommand\n#")


@pytest.mark.parametrize("method", Method)
@pytest.mark.parametrize("zero_stage", [1, 3])
def test_python_in_the_guide_is_valid(tmp_path: Path, method: Method, zero_stage: int) -> None:
    strategy = Strategy(
        zero_stage=zero_stage,
        optimizer=Optimizer.ADAMW_8BIT,
        lora_rank=0 if method is Method.FULL else 8,
    )
    trial = complete(0, 1, 1, strategy=strategy)
    study = replace(summary(trial), workload=replace(LORA_WORKLOAD, method=method))
    folder = export_trial(study, trial, tmp_path / "best")
    text = (folder / "README.md").read_text()
    examples = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(examples) == 2
    for example in examples:
        ast.parse(example)
    assert 'autotune.apply(model, "strategy.yaml")' in examples[0]
    assert ("HfDeepSpeedConfig" in examples[0]) == (zero_stage == 3)
    assert ("BitsAndBytesConfig" in examples[0]) == (method is Method.QLORA)


def test_guide_of_a_pipeline_trains_by_whole_batches(tmp_path: Path) -> None:
    strategy = Strategy(micro_batch_size=4, pipeline_parallel_size=2)
    trial = complete(0, 1, 1, strategy=strategy)
    folder = export_trial(summary(trial), trial, tmp_path / "best")
    text = (folder / "README.md").read_text()
    (example,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    ast.parse(example)
    assert 'autotune.pipeline(model, "strategy.yaml")' in example
    assert "engine.train_batch(" in example
    assert "Neither drives DeepSpeed's pipeline engine" in text


def test_guide_gives_the_hf_trainer_the_values_of_the_json(tmp_path: Path) -> None:
    folder = export_trial(STUDY, TRIAL, tmp_path / "best")
    guide = (folder / "README.md").read_text()
    assert "per_device_train_batch_size=8" in guide
    assert "gradient_accumulation_steps=4" in guide
    assert "bf16=True" in guide


@pytest.mark.parametrize(("zero_stage", "words"), [(0, "in 32 bit."), (1, "flat\npartitions")])
def test_guide_says_what_becomes_of_the_embedding_in_8_bit(
    tmp_path: Path, zero_stage: int, words: str
) -> None:
    strategy = Strategy(zero_stage=zero_stage, optimizer=Optimizer.ADAMW_8BIT)
    trial = complete(0, 1, 1, strategy=strategy)
    folder = export_trial(summary(trial), trial, tmp_path / "best")
    assert words in (folder / "README.md").read_text()
    assert "8-bit ones keep embeddings in 32 bit" in (folder / "strategy.yaml").read_text()


def test_an_export_of_muon_clips_no_gradients(tmp_path: Path) -> None:
    trial = complete(0, 1, 1, strategy=Strategy(zero_stage=3, optimizer=Optimizer.MUON))
    folder = export_trial(summary(trial), trial, tmp_path / "best")
    config = json.loads((folder / "ds_config.json").read_text())
    assert config["gradient_clipping"] == 0
    assert "optimizer" not in config
    assert config["zero_optimization"]["reduce_scatter"] is False
    # HF Trainer refuses a JSON that says otherwise than its arguments.
    assert "max_grad_norm=0.0" in (folder / "README.md").read_text()


@pytest.mark.parametrize("knobs", [{"precision": "fp16"}, {"mlp_precision": "fp16"}], ids=str)
def test_an_export_of_fp16_without_zero_scales_its_gradients_itself(
    tmp_path: Path, knobs: dict[str, str]
) -> None:
    trial = complete(0, 1, 1, strategy=Strategy.from_dict(knobs))
    folder = export_trial(summary(trial), trial, tmp_path / "best")
    config = json.loads((folder / "ds_config.json").read_text())
    assert config["gradient_clipping"] == 0
    assert not {"optimizer", "fp16", "bf16"} & set(config)
    guide = (folder / "README.md").read_text()
    assert "`optimizer.loss_scale.max_norm`" in guide
    # Trainer and Accelerate would turn DeepSpeed's fp16 on.
    assert "fp16=True" not in guide
    assert "max_grad_norm=0.0" in guide
    assert "StrategyTrainer(model=model" in guide


@pytest.mark.parametrize("is_there", [False, True])
def test_an_export_is_its_owners_alone(tmp_path: Path, is_there: bool) -> None:
    if is_there:
        (tmp_path / "best").mkdir(mode=0o755)
    folder = export_trial(STUDY, TRIAL, tmp_path / "best")
    others = 0o077
    assert is_there or not folder.stat().st_mode & others
    assert [path.name for path in folder.iterdir() if path.stat().st_mode & others] == []
    assert (folder / "launch.sh").stat().st_mode & 0o100


def test_the_same_export_again_changes_nothing(tmp_path: Path) -> None:
    folder = export_trial(STUDY, TRIAL, tmp_path / "best")
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert export_trial(STUDY, TRIAL, folder) == folder
    assert before == {path: path.stat().st_mtime_ns for path in folder.iterdir()}


def test_another_export_into_the_same_folder_is_refused(tmp_path: Path) -> None:
    folder = export_trial(STUDY, TRIAL, tmp_path / "best")
    before = {path: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(ConfigError, match=r"--out .* is not empty"):
        export_trial(STUDY, complete(8, 1, 1), folder)
    assert before == {path: path.read_bytes() for path in folder.iterdir()}


def test_an_edited_export_is_never_overwritten(tmp_path: Path) -> None:
    folder = export_trial(STUDY, TRIAL, tmp_path / "best")
    (folder / "ds_config.json").write_text("{}")
    with pytest.raises(ConfigError, match="not empty"):
        export_trial(STUDY, TRIAL, folder)
    assert (folder / "ds_config.json").read_text() == "{}"


def test_an_empty_folder_is_filled(tmp_path: Path) -> None:
    assert export_trial(STUDY, TRIAL, tmp_path) == tmp_path
    assert (tmp_path / "strategy.yaml").is_file()


def test_a_file_in_the_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ConfigError, match=r"--out .* is not a folder"):
        export_trial(STUDY, TRIAL, tmp_path / "file")


def test_a_folder_that_cannot_be_made_is_a_storage_error_of_one_line() -> None:
    # /proc takes no folders, not even from root.
    with pytest.raises(StorageError, match="--out /proc/best") as caught:
        export_trial(STUDY, TRIAL, Path("/proc/best"))
    assert "\n" not in str(caught.value)


def test_a_trial_without_a_measurement_cannot_be_exported(tmp_path: Path) -> None:
    trial = failed(3, FailureKind.CRASH)
    with pytest.raises(ConfigError, match="--trial 3 is failed"):
        export_trial(STUDY, trial, tmp_path / "best")
    assert not (tmp_path / "best").exists()


def test_the_trainer_is_told_no_dtype_where_groups_of_modules_have_their_own(
    tmp_path: Path,
) -> None:
    strategy = replace(STRATEGY, norm_precision=GroupPrecision.FP32)
    guides = [
        (export_trial(STUDY, complete(7, 1, 1, strategy=s), tmp_path / name) / "README.md")
        for name, s in (("one", STRATEGY), ("several", strategy))
    ]
    one, several = (guide.read_text() for guide in guides)
    assert "bf16=True" in one
    assert "bf16=True" not in several
    assert "StrategyTrainer(model=model" in several
