"""Files of DeepSpeed, Accelerate, Axolotl and LLaMA-Factory, read as a question and a strategy."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import files
import pytest
from files import write

from autotune.errors import ConfigError
from autotune.foreign.deepspeed import PUBLISHED
from autotune.foreign.optimizers import OPTIMIZER_NAMES
from autotune.foreign.reader import read_setup
from autotune.foreign.setup import Setup
from autotune.foreign.tool import Tool
from autotune.knob_values import Attention, MasterWeights, Offload, Optimizer, Precision
from autotune.machine.hardware import Hardware
from autotune.machine.hardware_spec import read_hardware
from autotune.plan.plan import ASSUMED_SOFTWARE
from autotune.question.workload import Method, Workload, load_model_shape


def read(folder: Path, content: str | Mapping[str, Any], name: str | None = None) -> Setup:
    suffix = "yaml" if isinstance(content, str) else "json"
    path = write(
        folder,
        name or f"yaml/theirs.{suffix}",
        content if isinstance(content, str) else dict(content),
    )
    write(folder, "json/zero.json", files.DEEPSPEED_AUTO)
    return read_setup(path)


def hardware(spec: str = "4xH100-80GB") -> Hardware:
    return read_hardware(spec, num_nodes=1, host_memory_gib=None, nvme_gib=None).all_ranks


def workload(setup: Setup, ranks: Hardware, model: str = "1.1B") -> Workload:
    return Workload(
        model=load_model_shape(setup.model or model),
        seq_len=min(setup.seq_len or 1024, 512),
        global_batch_size=setup.global_batch(ranks.num_devices) or 32,
        method=setup.method or Method.FULL,
        lora_rank=setup.lora_rank or 16,
        lora_targets=setup.lora_targets or ("all-linear",),
    )


CASES: dict[str, tuple[Any, Tool, dict[str, Any], dict[str, Any]]] = {
    "DeepSpeed, all auto": (
        files.DEEPSPEED_AUTO,
        Tool.DEEPSPEED,
        {"model": None, "method": None, "has_auto_bucket": True},
        {"zero_stage": 3, "offload_optimizer": Offload.CPU, "optimizer": Optimizer.ADAMW},
    ),
    "DeepSpeed, numbers": (
        files.DEEPSPEED_NUMBERS,
        Tool.DEEPSPEED,
        {"train_batch_size": 64},
        {
            "zero_stage": 2,
            "micro_batch_size": 4,
            "tensor_parallel_size": 2,
            "reduce_bucket_size": 200_000_000,
            "precision": Precision.BF16,
            "master_weights": MasterWeights.BF16,
        },
    ),
    "Accelerate, without a JSON": (
        files.ACCELERATE_INLINE,
        Tool.ACCELERATE,
        {"num_ranks": 4, "accumulation_steps": 4},
        {"zero_stage": 3, "offload_optimizer": Offload.CPU, "precision": Precision.BF16},
    ),
    "Accelerate, naming a JSON": (
        files.ACCELERATE_NAMING,
        Tool.ACCELERATE,
        {"num_ranks": 2, "has_auto_bucket": True},
        {"zero_stage": 3, "offload_optimizer": Offload.CPU},
    ),
    "Axolotl, LoRA": (
        files.AXOLOTL_LORA,
        Tool.AXOLOTL,
        {
            "model": "7B",
            "seq_len": 4096,
            "method": Method.LORA,
            "lora_rank": 32,
            "lora_targets": ("all-linear",),
            "accumulation_steps": 4,
        },
        {
            "micro_batch_size": 2,
            "lora_rank": 32,
            "lora_alpha": 16,
            "optimizer": Optimizer.ADAMW_8BIT,
            "attention": Attention.FLASH,
            "checkpoint_interval": 1,
            "zero_stage": 0,
        },
    ),
    "Axolotl, full": (
        files.AXOLOTL_FULL,
        Tool.AXOLOTL,
        {"model": "3B", "seq_len": 8192, "method": Method.FULL},
        {"optimizer": Optimizer.PAGED_ADAMW_8BIT, "zero_stage": 0, "lora_rank": 0},
    ),
    "Axolotl, long sequences": (
        files.AXOLOTL_ALST,
        Tool.AXOLOTL,
        {"model": "3B", "seq_len": 100_000},
        {
            "sequence_parallel_size": 8,
            "offload_checkpoints": Offload.CPU,
            "zero_stage": 3,
            "offload_param": Offload.CPU,
            "precision": Precision.BF16,
        },
    ),
    "Axolotl, Liger and FSDP": (
        files.AXOLOTL_LIGER_FSDP,
        Tool.AXOLOTL,
        {"model": "3B"},
        {
            "fused_kernels": True,
            "torch_compile": True,
            "attention": Attention.FLASH,
            "zero_stage": 3,
            "offload_param": Offload.CPU,
        },
    ),
    "LLaMA-Factory, LoRA": (
        files.LLAMAFACTORY_LORA,
        Tool.LLAMAFACTORY,
        {"model": "7B", "seq_len": 2048, "method": Method.LORA, "lora_rank": 8},
        {"zero_stage": 3, "overlap_comm": False, "checkpoint_interval": 1, "micro_batch_size": 1},
    ),
    "LLaMA-Factory, QLoRA": (
        files.LLAMAFACTORY_QLORA,
        Tool.LLAMAFACTORY,
        {"method": Method.QLORA, "lora_rank": 16, "lora_targets": ("q_proj", "v_proj")},
        {"lora_alpha": 8, "precision": Precision.FP16, "zero_stage": 0},
    ),
    "LLaMA-Factory, full": (
        files.LLAMAFACTORY_FULL,
        Tool.LLAMAFACTORY,
        {"model": "3B", "seq_len": 2048, "method": Method.FULL},
        {
            "fused_kernels": True,
            "attention": Attention.FLASH,
            "checkpoint_interval": 0,
            "zero_stage": 3,
            "offload_optimizer": Offload.CPU,
        },
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_a_file_says_its_question_and_its_strategy(case: str, tmp_path: Path) -> None:
    content, tool, fields, knobs = CASES[case]
    setup = read(tmp_path, content)
    assert setup.tool is tool
    assert {name: getattr(setup, name) for name in fields} == fields
    assert {knob: setup.knobs.get(knob) for knob in knobs} == knobs


@pytest.mark.parametrize("case", CASES)
def test_its_strategy_can_be_planned(case: str, tmp_path: Path) -> None:
    setup, ranks = read(tmp_path, CASES[case][0]), hardware("8xH100-80GB")
    made = setup.strategy(workload(setup, ranks), ranks, ASSUMED_SOFTWARE)
    assert made.strategy is not None or made.problem, made
    if case != "Axolotl, Liger and FSDP":
        assert made.problem is None
    else:
        # torch.compile cannot be had with ZeRO-3 here, so another loop of layers stands for it.
        assert made.strategy is None
        assert "torch_compile needs zero_stage" in str(made.problem)


def test_keys_without_a_counterpart_are_all_named(tmp_path: Path) -> None:
    assert read(tmp_path, files.DEEPSPEED_AUTO).left_out == (
        "zero_optimization.sub_group_size",
        "zero_optimization.stage3_max_live_parameters",
        "monitor_config",
    )
    assert read(tmp_path, files.AXOLOTL_LORA).left_out == (
        "model_type",
        "datasets",
        "val_set_size",
        "output_dir",
        "sample_packing",
        "lora_dropout",
        "num_epochs",
        "lr_scheduler",
        "learning_rate",
        "special_tokens",
    )


def test_what_is_read_otherwise_than_expected_is_said(tmp_path: Path) -> None:
    assert "load_in_8bit is left out" in read(tmp_path, files.AXOLOTL_LORA).notes[0]
    assert "measured as ZeRO-3" in read(tmp_path, files.AXOLOTL_LIGER_FSDP).notes[0]
    assert "published file" in read(tmp_path, files.AXOLOTL_ALST).notes[0]


def test_auto_is_filled_as_the_trainer_fills_it(tmp_path: Path) -> None:
    """transformers 5.24, `trainer_config_finalize`, and the defaults of `TrainingArguments`."""
    setup, ranks = read(tmp_path, files.DEEPSPEED_AUTO), hardware("2xH100-80GB")
    made = setup.strategy(workload(setup, ranks), ranks, ASSUMED_SOFTWARE)
    assert made.strategy is not None
    assert made.strategy.micro_batch_size == 8
    assert made.strategy.reduce_bucket_size == 2048**2
    assert made.strategy.precision is Precision.BF16
    assert any("micro_batch_size 8" in note for note in made.notes)
    assert any("precision bf16" in note for note in made.notes)


def test_the_micro_batch_of_a_yaml_fills_auto_in_its_json(tmp_path: Path) -> None:
    setup, ranks = read(tmp_path, files.LLAMAFACTORY_FULL), hardware()
    assert setup.global_batch(4) == 2 * 4 * 4
    made = setup.strategy(workload(setup, ranks), ranks, ASSUMED_SOFTWARE)
    assert made.strategy is not None
    assert made.strategy.micro_batch_size == 2
    assert made.strategy.gradient_accumulation_steps(32, 4) == 4


def test_ranks_that_share_a_sample_do_not_multiply_the_batch(tmp_path: Path) -> None:
    assert read(tmp_path, files.AXOLOTL_ALST).global_batch(8) == 1
    assert read(tmp_path, files.ACCELERATE_INLINE).global_batch(2) == 8 * 4 * 4


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (
            "base_model: tiny\nadapter: llama-adapter\nmicro_batch_size: 1\n",
            "adapter llama-adapter",
        ),
        ("model_name_or_path: tiny\nfinetuning_type: freeze\n", "finetuning_type freeze"),
        ("distributed_type: MEGATRON_LM\nnum_processes: 8\n", "distributed_type MEGATRON_LM"),
    ],
)
def test_training_of_a_kind_that_is_not_here_is_no_baseline(
    content: str, words: str, tmp_path: Path
) -> None:
    setup, ranks = read(tmp_path, content), hardware()
    made = setup.strategy(workload(setup, ranks), ranks, ASSUMED_SOFTWARE)
    assert made.strategy is None
    assert words in str(made.problem)


@pytest.mark.parametrize(
    ("config", "outer", "precision"),
    [
        ({}, "bf16: true", Precision.BF16),
        ({"bf16": {"enabled": "auto"}}, "bf16: true", Precision.BF16),
        ({"fp16": {"enabled": True}}, "", Precision.FP16),
        ({"bf16": {"enabled": False}}, "bf16: false", Precision.FP32),
    ],
)
def test_the_precision_is_that_of_json_and_yaml_together(
    config: dict[str, Any], outer: str, precision: Precision, tmp_path: Path
) -> None:
    """Accelerate adds a section that the JSON lacks (`set_mixed_precision`)."""
    write(tmp_path, "yaml/own.json", {"zero_optimization": {"stage": 1}, **config})
    text = f"model_name_or_path: tiny\ndeepspeed: own.json\n{outer}\n"
    assert read(tmp_path, text).knobs["precision"] is precision


def test_tiles_without_a_number_are_as_many_as_the_sequence_has_widths(tmp_path: Path) -> None:
    setup, ranks = read(tmp_path, files.AXOLOTL_ALST), hardware("8xH100-80GB")
    assert setup.values(workload(setup, ranks), ranks)[0]["mlp_tiles"] == 1
    asked = Workload(model=load_model_shape("3B"), seq_len=100_000, global_batch_size=1)
    assert setup.values(asked, ranks)[0]["mlp_tiles"] == 33


@pytest.mark.parametrize(("stage", "is_said"), [(2, False), (0, True)])
def test_weights_in_bf16_are_masters_in_bf16_under_zero(
    stage: int, is_said: bool, tmp_path: Path
) -> None:
    setup = read(
        tmp_path,
        "model_name_or_path: tiny\nfinetuning_type: full\npure_bf16: true\n"
        f"deepspeed: {{zero_optimization: {{stage: {stage}}}}}\n",
    )
    ranks = hardware()
    made = setup.strategy(workload(setup, ranks), ranks, ASSUMED_SOFTWARE)
    assert made.strategy is not None
    assert (made.strategy.master_weights is MasterWeights.FP32) is is_said
    assert ("pure_bf16" in setup.left_out) is is_said


def test_axolotl_without_deepspeed_has_no_masters_and_that_is_said(tmp_path: Path) -> None:
    assert "16-bit weights themselves" in str(read(tmp_path, files.AXOLOTL_FULL).notes)
    assert "16-bit weights themselves" not in str(read(tmp_path, files.AXOLOTL_LORA).notes)


def test_a_part_of_ligers_kernels_is_said_to_be_all_of_them(tmp_path: Path) -> None:
    assert "Liger" not in str(read(tmp_path, files.AXOLOTL_LIGER_FSDP).notes)
    part = files.AXOLOTL_LIGER_FSDP.replace("liger_rope: true\n", "")
    setup = read(tmp_path, part)
    assert setup.knobs["fused_kernels"] is True
    assert "all of Liger's kernels are measured, liger_rope too" in setup.notes
    beside = read(tmp_path, part.replace("plugins:\n", "plugins:\n  - an.OtherPlugin\n"))
    assert "plugins" in beside.left_out
    assert beside.knobs["fused_kernels"] is True


def test_liger_without_its_loss_is_left_out(tmp_path: Path) -> None:
    part = files.AXOLOTL_LIGER_FSDP.replace("liger_fused_linear_cross_entropy: true\n", "")
    setup = read(tmp_path, part)
    assert "fused_kernels" not in setup.knobs
    assert {"liger_rope", "liger_rms_norm", "liger_glu_activation"} <= set(setup.left_out)


def test_a_scale_of_adapters_that_a_search_does_not_move_is_said(tmp_path: Path) -> None:
    assert "lora_alpha 16 is kept in the baseline" in read(tmp_path, files.AXOLOTL_LORA).notes[-1]


def test_a_json_alone_without_a_precision_trains_in_fp32(tmp_path: Path) -> None:
    alone = read(tmp_path, {"zero_optimization": {"stage": 1}})
    assert alone.knobs["precision"] is Precision.FP32


def test_a_model_folder_is_found_beside_the_file(tmp_path: Path) -> None:
    (tmp_path / "yaml" / "my-model").mkdir(parents=True)
    setup = read(tmp_path, "base_model: ./my-model\nmicro_batch_size: 1\n")
    assert setup.model == str(tmp_path / "yaml" / "my-model")


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_json_is_known_by_its_name(name: str, tmp_path: Path) -> None:
    setup = read(tmp_path, f"base_model: tiny\nmicro_batch_size: 1\ndeepspeed: a/{name}\n")
    assert setup.knobs["zero_stage"] == PUBLISHED[name]["stage"]


def test_a_machine_without_a_kernel_measures_the_rest(tmp_path: Path) -> None:
    setup = read(
        tmp_path, files.AXOLOTL_LORA.replace("micro_batch_size: 2", "micro_batch_size: 1")
    )
    cpu = hardware("1xV100-32GB")
    made = setup.strategy(workload(setup, cpu), cpu, ASSUMED_SOFTWARE)
    assert made.strategy is not None
    assert made.strategy.attention is Attention.SDPA
    assert any(
        note.startswith("attention sdpa stands for flash_attention_2") for note in made.notes
    )


def test_names_of_optimizers_are_those_of_the_installed_trainer() -> None:
    from transformers.training_args import OptimizerNames

    known = {str(name.value) for name in OptimizerNames}
    assert OPTIMIZER_NAMES.keys() - known == {"adamw_hf", "ao_adamw_8bit", "muon"}


MISTAKES: dict[str, tuple[str | Mapping[str, Any], str]] = {
    "nothing known": ("question: laughs\n", "none of their keys"),
    "two tools": ("base_model: x\nmodel_name_or_path: x\n", "give a file of one tool"),
    "a list": ("- base_model\n", "must be a mapping"),
    "no YAML": ("base_model: [", "not valid YAML"),
    "a stage that is none": ({"zero_optimization": {"stage": 4}}, "zero_optimization.stage takes"),
    "a stage in words": ({"zero_optimization": {"stage": "two"}}, "stage takes a number"),
    "a flag in words": (
        {"zero_optimization": {"stage": 1, "overlap_comm": "maybe"}},
        "overlap_comm takes true or false",
    ),
    "a batch of nothing": ({"train_batch_size": 0}, "train_batch_size takes a number from 1"),
    "half a batch": ({"train_batch_size": 1.5}, "takes a whole number"),
    "a batch without an end": ({"train_batch_size": float("inf")}, "takes a number"),
    "zero_optimization is no mapping": ({"zero_optimization": 3}, "takes a mapping of keys"),
    "both precisions": (
        {"train_batch_size": 8, "bf16": {"enabled": True}, "fp16": {"enabled": True}},
        "bf16 and fp16 are both enabled",
    ),
    "a JSON that is not there": ("base_model: tiny\ndeepspeed: no/such.json\n", "no/such.json"),
    "a JSON that is a number": ("base_model: tiny\ndeepspeed: 3\n", "deepspeed takes the name"),
    "two micro-batches": (
        "base_model: tiny\nmicro_batch_size: 1\n"
        "deepspeed: {train_micro_batch_size_per_gpu: 2, zero_optimization: {stage: 1}}\n",
        "train_micro_batch_size_per_gpu is 2 in its DeepSpeed JSON and 1",
    ),
    "two accumulations": (
        "base_model: tiny\nmicro_batch_size: 1\ngradient_accumulation_steps: 3\n"
        "deepspeed: {gradient_accumulation_steps: 2, zero_optimization: {stage: 1}}\n",
        "gradient_accumulation_steps is 2 in its DeepSpeed JSON and 3",
    ),
    "a note of ours that was edited": (
        {"zero_optimization": {"stage": 1}, "_autotune": {"knobs": {"mlp_tiles": "many"}}},
        "mlp_tiles takes whole numbers",
    ),
    "a note of ours that steers a shell": (
        {"zero_optimization": {"stage": 1}, "_autotune": {"knobs": {"lora_targets": "$(x)"}}},
        "the character $",
    ),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_a_mistake_is_one_line_that_names_file_and_key(case: str, tmp_path: Path) -> None:
    content, words = MISTAKES[case]
    with pytest.raises(ConfigError) as caught:
        read(tmp_path, content)
    assert str(caught.value).startswith("--from ")
    assert "theirs." in str(caught.value)
    assert words in str(caught.value)
    assert str(caught.value).isprintable()
