"""What is written for another tool is read back as the same strategy, and read by the tool."""

from __future__ import annotations

import json
import random
from functools import cache
from pathlib import Path
from typing import Any

import published_keys
import pytest

from autotune.foreign.reader import read_setup
from autotune.foreign.tool import Tool
from autotune.foreign.writer import Written, write_setup
from autotune.knob_values import Offload, Optimizer
from autotune.machine.hardware import Hardware
from autotune.machine.hardware_spec import read_hardware
from autotune.plan.plan import ASSUMED_SOFTWARE
from autotune.question.workload import Method, Workload, load_model_shape
from autotune.space.space_file import load_search_space
from autotune.space.strategy import KNOBS, Strategy

QUESTIONS = {
    "full": (Method.FULL, "4xH100-80GB", "full"),
    "LoRA": (Method.LORA, "2xH100-80GB", "full"),
    "QLoRA": (Method.QLORA, "2xH100-80GB", "default"),
    "one GPU": (Method.FULL, "1xH100-80GB", "memory"),
}
NUM_DRAWN = 40


@cache
def drawn(question: str) -> tuple[Workload, Hardware, tuple[Strategy, ...]]:
    """A question, and strategies of its space."""
    method, spec, space = QUESTIONS[question]
    ranks = read_hardware(spec, num_nodes=1, host_memory_gib=None, nvme_gib=None).all_ranks
    workload = Workload(
        model=load_model_shape("1.1B"), seq_len=1024, global_batch_size=64, method=method
    )
    strategies = list(load_search_space(space, workload, ranks, ASSUMED_SOFTWARE).strategies())
    return workload, ranks, tuple(random.Random(1).sample(strategies, NUM_DRAWN))


def written_to(folder: Path, written: Written) -> Path:
    """Write the files; the one that a user names."""
    for name, content in written.files.items():
        (folder / name).write_bytes(content)
    return folder / next(
        (name for name in written.files if name.endswith(".yaml")), "ds_config.json"
    )


@pytest.mark.parametrize("question", QUESTIONS)
@pytest.mark.parametrize("tool", Tool)
def test_what_is_exported_is_read_back_as_the_same_strategy(
    tool: Tool, question: str, tmp_path: Path
) -> None:
    workload, ranks, strategies = drawn(question)
    for strategy in strategies:
        setup = read_setup(written_to(tmp_path, write_setup(tool, workload, ranks, strategy)))
        assert setup.tool is tool
        assert setup.left_out == ()
        made = setup.strategy(workload, ranks, ASSUMED_SOFTWARE)
        assert made.strategy == strategy, made
        assert setup.global_batch(ranks.num_devices) == workload.global_batch_size
        assert (setup.model, setup.seq_len, setup.method) == ("1.1B", 1024, workload.method)


UNSAID = {
    Tool.DEEPSPEED: {"zero_stage", "micro_batch_size", "offload_param", "tensor_parallel_size"},
    Tool.ACCELERATE: {"zero_stage", "micro_batch_size", "torch_compile", "sequence_parallel_size"},
    Tool.AXOLOTL: {
        *("zero_stage", "micro_batch_size", "optimizer", "attention", "fused_kernels", "tf32"),
        *("lora_rank", "lora_alpha", "lora_targets", "mlp_tiles", "offload_checkpoints"),
        *("sequence_parallel_size", "torch_compile", "tensor_parallel_size"),
    },
    Tool.LLAMAFACTORY: {
        *("zero_stage", "micro_batch_size", "optimizer", "attention", "fused_kernels", "tf32"),
        *("lora_rank", "lora_alpha", "lora_targets", "torch_compile"),
    },
}
"""Knobs that each tool has a key for, whatever the strategy is."""


@pytest.mark.parametrize("tool", Tool)
def test_only_what_a_tool_has_no_key_for_is_said_to_be_missing(tool: Tool) -> None:
    for question in QUESTIONS:
        workload, ranks, strategies = drawn(question)
        for strategy in strategies:
            unsaid = write_setup(tool, workload, ranks, strategy).unsaid
            assert not UNSAID[tool] & unsaid.keys(), strategy


def test_what_a_tool_cannot_say_stands_in_its_file() -> None:
    workload, ranks, _ = drawn("one GPU")
    strategy = Strategy(zero_stage=2, micro_batch_size=8, checkpoint_interval=2, loss_tiles=4)
    written = write_setup(Tool.AXOLOTL, workload, ranks, strategy)
    words = written.words(Tool.AXOLOTL)
    assert words is not None
    assert "checkpoint_interval 2, loss_tiles 4" in words
    assert f"# {words}\n" in written.files["axolotl.yaml"].decode()
    note = json.loads(written.files["ds_config.json"])["_autotune"]
    assert note["cannot_say"] == words
    assert note["knobs"] == {"checkpoint_interval": 2, "loss_tiles": 4}


def test_a_strategy_that_a_tool_can_say_is_written_without_a_note() -> None:
    workload, ranks, _ = drawn("one GPU")
    strategy = Strategy(zero_stage=2, micro_batch_size=8, checkpoint_interval=1)
    for tool in (Tool.AXOLOTL, Tool.LLAMAFACTORY):
        written = write_setup(tool, workload, ranks, strategy)
        assert written.unsaid == {}
        assert "has no key" not in str(written.files)


@pytest.mark.parametrize("question", QUESTIONS)
def test_accelerate_reads_what_is_written_for_it(question: str, tmp_path: Path) -> None:
    from accelerate.commands.config.config_args import load_config_from_file
    from accelerate.utils import DeepSpeedPlugin

    workload, ranks, strategies = drawn(question)
    for strategy in strategies[:10]:
        path = written_to(tmp_path, write_setup(Tool.ACCELERATE, workload, ranks, strategy))
        config = load_config_from_file(str(path))
        assert config.num_processes == ranks.num_devices
        named = config.deepspeed_config["deepspeed_config_file"]
        plugin = DeepSpeedPlugin(hf_ds_config=str(tmp_path / named))
        assert plugin.zero_stage == strategy.zero_stage
        offloads = plugin.get_value("zero_optimization.offload_optimizer.device", "none")
        assert offloads == strategy.offload_optimizer
        size = plugin.get_value("train_micro_batch_size_per_gpu")
        assert size == strategy.micro_batch_size
        accumulation = strategy.gradient_accumulation_steps(64, ranks.num_devices)
        assert plugin.gradient_accumulation_steps == accumulation


def keys_of(written: Written, name: str) -> dict[str, Any]:
    """As the tools read it: by PyYAML, whose YAML is 1.1."""
    import yaml

    read: dict[str, Any] = yaml.safe_load(written.files[name])
    return read


@pytest.mark.parametrize("question", QUESTIONS)
def test_the_trainer_takes_what_is_written_for_llama_factory(
    question: str, tmp_path: Path
) -> None:
    """Its arguments are transformers'; what else it has is held against its dataclasses' names."""
    from dataclasses import fields
    from types import SimpleNamespace

    from transformers import TrainingArguments
    from transformers.integrations.deepspeed import HfTrainerDeepSpeedConfig

    known = {field.name: field for field in fields(TrainingArguments)}
    workload, ranks, strategies = drawn(question)
    for strategy in strategies[:10]:
        written = write_setup(Tool.LLAMAFACTORY, workload, ranks, strategy)
        keys = keys_of(written, "llamafactory.yaml")
        assert keys.keys() <= published_keys.LLAMAFACTORY
        world_size = ranks.num_devices // strategy.model_parallel_size
        arguments = _arguments(keys, known, world_size)
        config = HfTrainerDeepSpeedConfig(json.loads(written.files["ds_config.json"]))
        config.trainer_config_process(arguments)
        model = SimpleNamespace(config=SimpleNamespace(hidden_size=workload.model.hidden_size))
        config.trainer_config_finalize(arguments, model, 100)
        assert '"auto"' not in json.dumps(config.config)
        assert config.get_value("train_micro_batch_size_per_gpu") == strategy.micro_batch_size


def _arguments(keys: dict[str, Any], known: dict[str, Any], world_size: int) -> Any:
    """Transformers' arguments with the keys in them, as far as the DeepSpeed JSON asks them."""
    from types import SimpleNamespace

    asked = {name: field.default for name, field in known.items()} | {
        "fp16_full_eval": False,
        "bf16_full_eval": False,
        "save_on_each_node": False,
    }
    return SimpleNamespace(
        **{**asked, **{name: value for name, value in keys.items() if name in known}},
        world_size=world_size,
        get_warmup_steps=lambda _: 0,
    )


@pytest.mark.parametrize("question", QUESTIONS)
def test_axolotl_has_every_key_that_is_written_for_it(question: str) -> None:
    workload, ranks, strategies = drawn(question)
    for strategy in strategies:
        keys = keys_of(write_setup(Tool.AXOLOTL, workload, ranks, strategy), "axolotl.yaml")
        assert keys.keys() <= published_keys.AXOLOTL
        assert isinstance(keys["learning_rate"], float)
        assert sum(bool(keys.get(key)) for key in ("bf16", "fp16")) <= 1
        if workload.method is Method.QLORA:
            # `validate_qlora` of its `LoraConfig`.
            assert keys["load_in_4bit"] is True
        attentions = ("flash_attention", "sdp_attention", "eager_attention")
        # `check_attention_fields` of its schema.
        assert sum(key in keys for key in attentions) == 1


def test_all_that_a_tool_can_say_is_said(tmp_path: Path) -> None:
    """A strategy with a value of its own for every knob that Axolotl has a key for."""
    workload, ranks, _ = drawn("LoRA")
    strategy = Strategy(
        zero_stage=2,
        micro_batch_size=4,
        checkpoint_interval=1,
        offload_checkpoints=Offload.CPU,
        mlp_tiles=4,
        optimizer=Optimizer.PAGED_ADAMW_8BIT,
        reduce_bucket_size=1_000_000,
        overlap_comm=False,
        fused_kernels=True,
        lora_rank=4,
        lora_alpha=3,
        lora_targets="mlp",
    )
    path = written_to(tmp_path, write_setup(Tool.AXOLOTL, workload, ranks, strategy))
    text = path.read_text()
    assert "has no key" not in text
    values, _ = read_setup(path).values(workload, ranks)
    assert values == {knob: getattr(strategy, knob) for knob in KNOBS}


@pytest.mark.parametrize("tool", [Tool.AXOLOTL, Tool.LLAMAFACTORY])
def test_what_a_user_changes_in_an_export_counts(tool: Tool, tmp_path: Path) -> None:
    workload, ranks, _ = drawn("one GPU")
    strategy = Strategy(zero_stage=2, micro_batch_size=8, checkpoint_interval=2)
    path = written_to(tmp_path, write_setup(tool, workload, ranks, strategy))
    text = path.read_text()
    text = text.replace(": 1024\n", ": 512\n").replace("steps: 8\n", "steps: 2\n")
    path.write_text(text.replace("TinyLlama/TinyLlama-1.1B-Chat-v1.0", "tiny"))
    setup = read_setup(path)
    assert (setup.model, setup.seq_len) == ("tiny", 512)
    assert setup.global_batch(1) == 16
