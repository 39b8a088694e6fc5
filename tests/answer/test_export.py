from __future__ import annotations

import ast
import json
import os
import re
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from sample_study import HARDWARE, LAPTOP, LORA_WORKLOAD, complete, failed, summary

from autotune.answer.export import export_into, export_trial, exported_to
from autotune.errors import ConfigError, StorageError
from autotune.knob_values import GroupPrecision, Optimizer
from autotune.machine.settings import SETTINGS
from autotune.question.workload import Method
from autotune.space.deepspeed_config import deepspeed_config
from autotune.space.strategy import Strategy
from autotune.space.strategy_file import read_strategy_file
from autotune.trials.trial import FailureKind

STRATEGY = Strategy(zero_stage=2, micro_batch_size=8, checkpoint_interval=2)
TRIAL = complete(7, 45_000, 60, strategy=STRATEGY)
STUDY = summary(TRIAL)


def examples_of(folder: Path) -> list[str]:
    """The Python code of an export's guide: plain DeepSpeed, HF Trainer, Accelerate."""
    text = (folder / "README.md").read_text()
    return re.findall(r"```python\n(.*?)```", text, re.DOTALL)


def trainer_arguments(folder: Path) -> dict[str, Any]:
    """What the example gives `TrainingArguments`, with what it reads from the JSON."""
    config = json.loads((folder / "ds_config.json").read_text())
    (call,) = (
        node
        for node in ast.walk(ast.parse(examples_of(folder)[1]))
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "TrainingArguments"
    )
    return {
        str(keyword.arg): eval(ast.unparse(keyword.value), {"config": config})
        for keyword in call.keywords
    }


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
    assert "export DS_ACCELERATOR=cpu\n" in script
    assert "\ndeepspeed --num_accelerators 2 train.py" in script


def test_names_of_folders_steer_neither_a_script_nor_html(tmp_path: Path) -> None:
    trial = replace(TRIAL, reused_from="trial 1 of <script>\x1b[31m")
    study = replace(summary(trial), name="<b>\ncommand")
    readme = (export_trial(study, trial, tmp_path / "best") / "README.md").read_text()
    assert "study &lt;b&gt;\\u000acommand:" in readme
    assert "(by trial 1 of &lt;script&gt;\\u001b[31m)." in readme
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
    examples = examples_of(folder)
    assert len(examples) == 3
    for example in examples:
        ast.parse(example)
        assert 'autotune.apply(model, "strategy.yaml")' in example
        assert ("BitsAndBytesConfig" in example) == (method is Method.QLORA)
        assert "1e-05" not in example
        # Whatever sets the environment does so before torch reads it.
        assert example.index("PYTORCH_CUDA_ALLOC_CONF") < example.index("import autotune")
    assert ("HfDeepSpeedConfig" in examples[0]) == (zero_stage == 3)


def test_guide_of_a_pipeline_trains_by_whole_batches(tmp_path: Path) -> None:
    strategy = Strategy(micro_batch_size=4, pipeline_parallel_size=2)
    trial = complete(0, 1, 1, strategy=strategy)
    folder = export_trial(summary(trial), trial, tmp_path / "best")
    text = (folder / "README.md").read_text()
    (example,) = examples_of(folder)
    ast.parse(example)
    assert 'autotune.pipeline(model, "strategy.yaml")' in example
    assert "engine.train_batch(" in example
    assert "Neither supports the pipeline engine of DeepSpeed" in text


def test_guide_gives_the_hf_trainer_the_values_of_the_json(tmp_path: Path) -> None:
    folder = export_trial(STUDY, TRIAL, tmp_path / "best")
    arguments = trainer_arguments(folder)
    assert arguments["per_device_train_batch_size"] == 8
    assert arguments["gradient_accumulation_steps"] == 4
    assert arguments["learning_rate"] == 1e-5
    assert arguments["bf16"] is True
    assert arguments["fp16"] is False


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
    assert trainer_arguments(folder)["max_grad_norm"] == 0.0


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
    arguments = trainer_arguments(folder)
    assert arguments["fp16"] is False
    assert arguments["max_grad_norm"] == 0.0
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
    one, several = (
        export_trial(STUDY, complete(7, 1, 1, strategy=s), tmp_path / name)
        for name, s in (("one", STRATEGY), ("several", strategy))
    )
    assert trainer_arguments(one)["bf16"] is True
    assert trainer_arguments(several)["bf16"] is False
    # Its learning rate is the optimizer's own.
    assert "learning_rate" not in trainer_arguments(several)
    assert read_strategy_file(several / "strategy.yaml").learning_rate == 1e-5
    assert read_strategy_file(one / "strategy.yaml").learning_rate is None
    assert "StrategyTrainer(model=model" in (several / "README.md").read_text()


def environment_in(folder: Path, own: dict[str, str]) -> dict[str, str]:
    """What `launch.sh` gives its launcher, where the environment has `own` already."""
    script = (folder / "launch.sh").read_text().replace("\ndeepspeed ", "\nenv #")
    ran = subprocess.run(
        ["sh", "-eu", "-c", script],
        env={"PATH": os.environ["PATH"]} | own,
        capture_output=True,
        text=True,
        check=True,
    )
    pairs = (line.partition("=") for line in ran.stdout.splitlines())
    return {name: value for name, _, value in pairs if name in SETTINGS}


def environment_of_script(folder: Path, own: dict[str, str]) -> dict[str, str]:
    """The same of the beginning of the guide's examples."""
    beginnings = {example.partition("\nimport autotune")[0] for example in examples_of(folder)}
    # That of the others imports json besides.
    assert len({beginning.replace("import json\n", "").strip() for beginning in beginnings}) == 1
    with patch.dict(os.environ, own, clear=True):
        exec(min(beginnings), {})
        return {name: value for name, value in os.environ.items() if name in SETTINGS}


MEASURED_WITH = {
    "OMP_NUM_THREADS": "13",
    "PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True,pinned_num_register_threads:4",
    "TOKENIZERS_PARALLELISM": "false",
    "NCCL_P2P_DISABLE": "1",
    "OMP_PLACES": "{0:4},{4:4}",
}


@pytest.mark.parametrize("environment", [environment_in, environment_of_script])
def test_an_export_sets_what_the_ranks_of_its_trial_had(
    tmp_path: Path, environment: Callable[[Path, dict[str, str]], dict[str, str]]
) -> None:
    assert TRIAL.measurement is not None
    # The record is a file: what is no setting, or no value of one, goes into no script.
    recorded = MEASURED_WITH | {"LD_PRELOAD": "evil.so", "NCCL_ALGO": "Ring'; touch evil; '"}
    measurement = replace(TRIAL.measurement, environment=recorded)
    trial = replace(TRIAL, measurement=measurement)
    folder = export_trial(summary(trial), trial, tmp_path / "best")
    assert environment(folder, {}) == MEASURED_WITH
    told = json.loads((folder / "provenance.json").read_text())["environment"]
    assert told["variables"] == MEASURED_WITH
    assert told["source"] == "the ranks of the trial, where it ran"
    assert "evil" not in (folder / "launch.sh").read_text()

    own = {"OMP_NUM_THREADS": "2", "PYTORCH_CUDA_ALLOC_CONF": "max_split_size_mb:64"}
    assert environment(folder, own) == MEASURED_WITH | own
    # torch reads PYTORCH_CUDA_ALLOC_CONF alone where both are set.
    newer = {"PYTORCH_ALLOC_CONF": "max_split_size_mb:64"}
    found = environment(folder, newer)
    assert found["PYTORCH_ALLOC_CONF"] == "max_split_size_mb:64"
    assert "PYTORCH_CUDA_ALLOC_CONF" not in found


@pytest.mark.parametrize("environment", [environment_in, environment_of_script])
def test_an_export_of_an_older_record_sets_what_a_trial_would_have_here(
    tmp_path: Path, environment: Callable[[Path, dict[str, str]], dict[str, str]]
) -> None:
    folder = export_trial(STUDY, TRIAL, tmp_path / "best")
    found = environment(folder, {})
    assert found["PYTORCH_CUDA_ALLOC_CONF"].startswith("expandable_segments:True,pinned_")
    assert found["OMP_NUM_THREADS"] == str(max(1, (os.cpu_count() or 1) // 2))
    told = json.loads((folder / "provenance.json").read_text())["environment"]
    assert "did not write down" in told["source"]


def test_an_architecture_that_no_extension_is_built_for_is_made_readable(tmp_path: Path) -> None:
    folder = export_trial(STUDY, TRIAL, tmp_path / "best")
    own = {"TORCH_CUDA_ARCH_LIST": "8.0;9.0a 10.0f+PTX"}
    assert environment_in(folder, own)["TORCH_CUDA_ARCH_LIST"] == "8.0;9.0 10.0+PTX"


def test_an_export_that_was_killed_in_the_current_folder_is_completed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = export_trial(STUDY, TRIAL, tmp_path / "whole")
    begun = tmp_path / "begun"
    begun.mkdir()
    monkeypatch.chdir(begun)
    (begun / "ds_config.json").write_bytes((whole / "ds_config.json").read_bytes())
    export_trial(STUDY, TRIAL, begun)
    assert {path.name for path in begun.iterdir()} == {path.name for path in whole.iterdir()}


@pytest.mark.parametrize("change", ["removed", "cut", "edited"])
def test_the_best_is_exported_whole_where_something_else_is_in_its_place(
    tmp_path: Path, change: str
) -> None:
    exports = tmp_path / "exports"
    first = export_into(STUDY, TRIAL, exports)
    assert first == exports / "trial-7"
    if change == "removed":  # of an earlier version that was killed between files
        (first / "provenance.json").unlink()
        (first / "README.md").unlink()
        (first / "launch.sh").write_text("of an earlier version")
    elif change == "cut":
        (first / "strategy.yaml").write_bytes((first / "strategy.yaml").read_bytes()[:100])
    else:
        (first / "ds_config.json").write_text('{"mine": true}')
    before = {path: path.read_bytes() for path in first.iterdir()}
    second = export_into(STUDY, TRIAL, exports)
    assert second == exports / "trial-7-2"
    assert len(list(second.iterdir())) == 5
    assert exported_to(TRIAL, exports) in (first, second)
    assert export_into(STUDY, TRIAL, exports) == second
    assert before == {path: path.read_bytes() for path in first.iterdir()}
    assert {path.name for path in exports.iterdir()} == {"trial-7", "trial-7-2"}


def test_an_earlier_export_of_the_same_strategy_stays_with_its_figures(tmp_path: Path) -> None:
    folder = export_into(STUDY, TRIAL, tmp_path)
    before = {path: path.read_bytes() for path in folder.iterdir()}
    slower = complete(7, 44_000, 60, strategy=STRATEGY)
    assert export_into(summary(slower), slower, tmp_path) == folder
    assert before == {path: path.read_bytes() for path in folder.iterdir()}
    assert exported_to(slower, tmp_path) == folder
    assert exported_to(complete(8, 1, 1), tmp_path) is None
