"""Reads a file of any known tool as a `Setup`: of which tool it is, is seen by its keys.

Does not know the question that it becomes.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from autotune.errors import ConfigError
from autotune.foreign import accelerate, axolotl, llamafactory
from autotune.foreign.deepspeed import DeepSpeedSays, read_deepspeed, read_named_deepspeed
from autotune.foreign.document import read_document
from autotune.foreign.hub_names import model_of
from autotune.foreign.keys import MOST_RANKS, MOST_SAMPLES, MOST_TOKENS, Keys, shown
from autotune.foreign.rows import read_rows
from autotune.foreign.setup import TRAINERS_MICRO_BATCH, Setup
from autotune.foreign.tool import Tool, tool_of
from autotune.knob_values import Offload, Precision
from autotune.question.presets import PRESETS
from autotune.question.workload import Method
from autotune.space.deepspeed_config import GRADIENT_CLIPPING, LEARNING_RATE

__all__ = ["read_setup", "setup_of"]

_FSDP = "FSDP shards weights, gradients and states as ZeRO-3 does, and is measured as ZeRO-3"


_WITHOUT_SHARDS = ("NO", "MULTI_GPU", "MULTI_CPU")
"""Accelerate's kinds of training in which every rank holds everything."""


_NO_MASTERS = (
    "without DeepSpeed it updates the 16-bit weights themselves, and is measured with fp32 masters"
)
"""Axolotl loads the model in bf16, and gives its parameters to the optimizer."""


_ALPHA = (
    "is kept in the baseline; other strategies have twice the rank, which no figure depends on: "
    "keep yours"
)


def read_setup(path: Path) -> Setup:
    """What a file says.

    Raises:
        ConfigError: there is no such file, it is of no known tool, or there is a mistake in it;
            one line that names the file and the key.
    """
    file = f"--from {path}"
    tree = read_document(path, file)
    tool = tool_of(tree, file)
    return _READERS[tool](Keys(tree, file), path)


def setup_of(tool: Tool, tree: Mapping[str, Any] | None, config: Mapping[str, Any]) -> Setup:
    """What files say that are not written yet.

    Args:
        tool: whose they are.
        tree: its own file, which names the DeepSpeed JSON; None where the JSON is all.
        config: that JSON.
    """
    if tree is None:
        return _READERS[tool](Keys(config, tool.brand), Path())
    whole = dict(tree)
    if "deepspeed" in whole:
        whole["deepspeed"] = config
    else:
        whole["deepspeed_config"] = {"deepspeed_config_file": config}
    return _READERS[tool](Keys(whole, tool.brand), Path())


def _deepspeed(keys: Keys, path: Path) -> Setup:
    says = read_deepspeed(keys)
    return _setup(Tool.DEEPSPEED, keys, path, {}, says, None)


def _accelerate(keys: Keys, path: Path) -> Setup:
    accelerate.expect_the_usual(keys)
    notes: list[str] = []
    says, problem = _shards(keys, path, notes)
    fields = {
        "num_ranks": keys.count("num_processes", most=MOST_RANKS),
        "knobs": accelerate.read_dynamo(keys) | accelerate.read_parallelism(keys),
        "notes": notes,
        "problem": problem,
    }
    return _setup(Tool.ACCELERATE, keys, path, fields, says, accelerate.read_precision(keys))


def _shards(keys: Keys, path: Path, notes: list[str]) -> tuple[DeepSpeedSays, str | None]:
    """What Accelerate is to divide over ranks, and why that has no counterpart here."""
    kind = (keys.word("distributed_type") or "NO").upper()
    plugin = keys.section("deepspeed_config")
    named = plugin.value("deepspeed_config_file")
    if named not in (None, "none"):
        return read_named_deepspeed(named, path, keys, "deepspeed_config_file"), None
    if kind == "DEEPSPEED":
        knobs, accumulation = accelerate.read_plugin(plugin)
        return DeepSpeedSays(knobs=knobs, accumulation_steps=accumulation), None
    if kind == "FSDP":
        return DeepSpeedSays(knobs=_fsdp(keys, notes)), None
    if kind in _WITHOUT_SHARDS:
        return DeepSpeedSays(), None
    return DeepSpeedSays(), f"distributed_type {shown(kind)} has no counterpart here"


def _axolotl(keys: Keys, path: Path) -> Setup:
    notes: list[str] = []
    fields = axolotl.read_adapters(keys, notes)
    knobs = read_rows(axolotl.ROWS, keys)
    says = _named(keys, path, notes)
    if knobs.get("fused_kernels") and (words := axolotl.liger_note(keys)) is not None:
        notes.append(words)
    if knobs.get("sequence_parallel_size", 1) > 1:
        notes.append("context parallel is ring attention there, and is measured as Ulysses")
    if fields.get("method") is Method.FULL and says.knobs == {"zero_stage": 0}:
        notes.append(_NO_MASTERS)
    keys.expect("pad_to_sequence_len", True)
    keys.expect("max_grad_norm", GRADIENT_CLIPPING, 0.0)
    keys.expect("learning_rate", LEARNING_RATE)
    fields |= {
        "model": keys.word("base_model"),
        "seq_len": keys.count("sequence_len", most=MOST_TOKENS) or 512,
        "accumulation_steps": axolotl.read_batch(keys),
        "knobs": knobs,
        "notes": notes,
    }
    return _setup(Tool.AXOLOTL, keys, path, fields, says, axolotl.read_precision(keys))


def _llamafactory(keys: Keys, path: Path) -> Setup:
    notes: list[str] = []
    fields = llamafactory.read_adapters(keys, notes)
    keys.expect("stage", "sft", "pt")
    keys.expect("do_train", True)
    keys.expect("max_grad_norm", GRADIENT_CLIPPING, 0.0)
    keys.expect("learning_rate", LEARNING_RATE)
    says = _named(keys, path, notes)
    knobs, precision = read_rows(llamafactory.ROWS, keys), llamafactory.read_precision(keys)
    if knobs.get("master_weights") and not says.knobs.get("zero_stage"):
        # Here weights are updated in bf16 under ZeRO alone.
        keys.leave("pure_bf16")
    knobs.setdefault("micro_batch_size", says.knobs.get("micro_batch_size", TRAINERS_MICRO_BATCH))
    accumulation = keys.count("gradient_accumulation_steps", most=MOST_SAMPLES)
    fields |= {
        "model": keys.word("model_name_or_path"),
        "seq_len": keys.count("cutoff_len", most=MOST_TOKENS) or llamafactory.DEFAULT_LENGTH,
        "accumulation_steps": accumulation or (None if says.accumulation_steps else 1),
        "knobs": knobs,
        "notes": notes,
    }
    return _setup(Tool.LLAMAFACTORY, keys, path, fields, says, precision)


_READERS = {
    Tool.DEEPSPEED: _deepspeed,
    Tool.ACCELERATE: _accelerate,
    Tool.AXOLOTL: _axolotl,
    Tool.LLAMAFACTORY: _llamafactory,
}


def _named(keys: Keys, path: Path, notes: list[str]) -> DeepSpeedSays:
    """What the key `deepspeed` stands for; without it and FSDP all ranks hold everything (DDP)."""
    value = keys.value("deepspeed")
    if value is None or value == "":
        is_sharded = keys.value("fsdp") or keys.value("fsdp_config")
        return DeepSpeedSays(knobs=_fsdp(keys, notes) if is_sharded else {"zero_stage": 0})
    return read_named_deepspeed(value, path, keys, "deepspeed")


def _fsdp(keys: Keys, notes: list[str]) -> dict[str, Any]:
    """FSDP is none of DeepSpeed's; what it does is what ZeRO-3 does."""
    keys.value("fsdp")
    config = keys.section("fsdp_config")
    notes.append(_FSDP)
    offloads = config.flag("fsdp_offload_params") or config.flag("offload_params")
    knobs: dict[str, Any] = {"zero_stage": 3}
    if offloads:
        knobs |= {"offload_param": Offload.CPU, "offload_optimizer": Offload.CPU}
    return knobs


def _setup(
    tool: Tool,
    keys: Keys,
    path: Path,
    fields: dict[str, Any],
    says: DeepSpeedSays,
    precision: Precision | None,
) -> Setup:
    """Everything together: what the JSON leaves open is filled by what stands around it."""
    _refuse_mismatch(keys, says, fields)
    if tool is Tool.DEEPSPEED or (says.has_precision and says.precision is not None):
        precision = says.precision
    knobs = _knobs(fields, says, precision)
    notes = (*says.notes, *fields.pop("notes", ()))
    if knobs.get("lora_alpha") and knobs["lora_rank"] == fields.get("lora_rank"):
        notes = (*notes, f"lora_alpha {knobs['lora_alpha']} {_ALPHA}")
    fields["adapter_targets"] = fields.get("lora_targets")
    asked = says.question | {name: each for name, each in fields.items() if each is not None}
    if "model" in asked:
        asked["model"] = _model(asked["model"], path)
    noted = asked.pop("train_batch_size", None)
    # A file with a model has a batch of its own, which may have been edited since.
    asked["train_batch_size"] = says.train_batch_size or (None if fields.get("model") else noted)
    asked.setdefault("accumulation_steps", says.accumulation_steps)
    return Setup(
        tool=tool,
        file=str(path),
        knobs=knobs,
        noted=says.noted,
        has_auto_bucket=says.has_auto_bucket,
        left_out=tuple(dict.fromkeys((*says.left_out, *keys.unread()))),
        notes=notes,
        **asked,
    )


def _knobs(
    fields: dict[str, Any], says: DeepSpeedSays, precision: Precision | None
) -> dict[str, Any]:
    """The knobs of all parts; what DeepSpeed is told in its JSON is what it does."""
    knobs: dict[str, Any] = fields.pop("knobs", {})
    if precision is not None:
        knobs["precision"] = precision
    rank, alpha = fields.get("lora_rank"), fields.pop("lora_alpha", None)
    if fields.get("method") is Method.FULL:
        knobs["lora_rank"] = 0
    elif rank:
        # Twice the rank has a word of its own, 0.
        knobs |= {"lora_rank": rank, "lora_alpha": 0 if alpha in (None, 2 * rank) else alpha}
    return knobs | says.knobs


def _refuse_mismatch(keys: Keys, says: DeepSpeedSays, fields: dict[str, Any]) -> None:
    """Transformers refuses a JSON that says another batch than its arguments."""
    inner = {
        "train_micro_batch_size_per_gpu": says.knobs.get("micro_batch_size"),
        "gradient_accumulation_steps": says.accumulation_steps,
    }
    outer = (fields.get("knobs", {}).get("micro_batch_size"), fields.get("accumulation_steps"))
    for (key, theirs), own in zip(inner.items(), outer, strict=True):
        if theirs is not None and own is not None and theirs != own:
            raise ConfigError(
                f"{keys.file}: {key} is {theirs} in its DeepSpeed JSON and {own} in the file "
                'itself; let both be the same, or write "auto" in the JSON'
            )


def _model(name: str, path: Path) -> str:
    """What `--model` takes: a preset for a published model of its shape, a folder, or the name."""
    beside = path.parent / name
    try:
        if name in PRESETS or Path(name).is_dir():
            return name
        if beside.is_dir():
            return str(beside)
    except (OSError, ValueError):
        return name
    return model_of(name)
