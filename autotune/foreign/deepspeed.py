"""A DeepSpeed JSON, read as knobs; `space/deepspeed_config.py` writes it.

`"auto"` is filled as transformers' Trainer and Accelerate fill it. Keys are those of DeepSpeed
0.19 (`runtime/config.py`, `runtime/zero/config.py`), and those that older examples have.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from autotune.errors import ConfigError
from autotune.foreign.document import find_beside, read_document
from autotune.foreign.keys import AUTO, MOST_RANK, MOST_SAMPLES, MOST_TOKENS, Keys, shown
from autotune.foreign.rows import Count, Flag, Named, Row, read_rows
from autotune.knob_values import DEFAULT_BUCKET_SIZE, MasterWeights, Offload, Optimizer, Precision
from autotune.names import plain_name
from autotune.question.workload import Method
from autotune.space.deepspeed_config import GRADIENT_CLIPPING, INITIAL_SCALE_POWER, LEARNING_RATE
from autotune.space.optimizers import OPTIMIZERS
from autotune.space.strategy import KNOBS, read_knob

__all__ = ["NOTE", "DeepSpeedSays", "read_deepspeed", "read_named_deepspeed"]

NOTE = "_autotune"
"""The key, which DeepSpeed does not read, under which an export says what its keys cannot."""

_ACCELERATES_STAGE = 2
"""What Accelerate's plugin fills in for a stage that is `"auto"`."""

_PLACES = {str(place): place for place in Offload}

_OPTIMIZERS = {
    "adamw": Optimizer.ADAMW,
    # DeepSpeed's Adam is AdamW unless `adam_w_mode` is false.
    "adam": Optimizer.ADAMW,
    "lion": Optimizer.LION,
    "sgd": Optimizer.SGD,
    "adafactor": Optimizer.ADAFACTOR,
    "muon": Optimizer.MUON,
    "muonwithauxadam": Optimizer.MUON,
}
"""Types of `optimizer` in lower case, as DeepSpeed compares them."""

_ZERO_ROWS: tuple[Row, ...] = (
    Flag("overlap_comm", "overlap_comm"),
    Flag("zero_quantized_weights", "zero_quantized_weights"),
    Flag("zero_quantized_gradients", "zero_quantized_gradients"),
    Count("zero_hpz_partition_size", "zero_hpz_partition_size"),
)

_USUAL: Mapping[str, tuple[Any, ...]] = {
    "gradient_clipping": (GRADIENT_CLIPPING, 0.0),
    "steps_per_print": (2**31 - 1,),
    "zero_allow_untested_optimizer": (True, False),
    "zero_force_ds_cpu_optimizer": (True, False),
    "wall_clock_breakdown": (False,),
    "dump_state": (False,),
    "prescale_gradients": (False,),
}
"""What every trial has of keys that no knob moves."""

_USUAL_ZERO: Mapping[str, tuple[Any, ...]] = {
    "contiguous_gradients": (True,),
    "reduce_scatter": (True,),
    "allgather_partitions": (True,),
    "sub_group_size": (1e9,),
    "stage3_prefetch_bucket_size": (5e7,),
    "stage3_param_persistence_threshold": (1e5,),
    "stage3_max_live_parameters": (1e9,),
    "stage3_max_reuse_distance": (1e9,),
}
"""DeepSpeed's own values, and so those of trials."""

_USUAL_SCALE: Mapping[str, tuple[Any, ...]] = {
    "loss_scale": (0,),
    "initial_scale_power": (INITIAL_SCALE_POWER, 16),
    "loss_scale_window": (1000,),
    "hysteresis": (2,),
    "min_loss_scale": (1,),
    "auto_cast": (False,),
}
"""The scale of fp16's losses: ours, and DeepSpeed's own."""

_DERIVED = (
    *("sub_group_size", "stage3_prefetch_bucket_size", "stage3_max_reuse_distance"),
    *("reduce_scatter", "contiguous_gradients", "buffer_size", "max_in_cpu"),
)
"""What an export of ours derives from its strategy: it is derived again."""

_DEVICE = {
    place: (Named(place, "device", _PLACES),) for place in ("offload_optimizer", "offload_param")
}

PUBLISHED: Mapping[str, Mapping[str, Any]] = {
    "zero1.json": {"stage": 1},
    "zero1_torch_compile.json": {"stage": 1},
    "zero2.json": {"stage": 2, "offload_optimizer": {"device": "cpu"}},
    "zero2_torch_compile.json": {"stage": 2, "offload_optimizer": {"device": "cpu"}},
    "zero3.json": {"stage": 3, "reduce_bucket_size": AUTO},
    "zero3_bf16.json": {"stage": 3, "reduce_bucket_size": AUTO},
    "zero3_bf16_cpuoffload_params.json": {
        "stage": 3,
        "offload_param": {"device": "cpu"},
        "reduce_bucket_size": AUTO,
    },
    "zero3_bf16_cpuoffload_all.json": {
        "stage": 3,
        "offload_optimizer": {"device": "cpu"},
        "offload_param": {"device": "cpu"},
        "reduce_bucket_size": AUTO,
    },
    "ds_z0_config.json": {"stage": 0},
    "ds_z2_config.json": {"stage": 2, "overlap_comm": False},
    "ds_z2_offload_config.json": {
        "stage": 2,
        "offload_optimizer": {"device": "cpu"},
        "overlap_comm": False,
    },
    "ds_z3_config.json": {"stage": 3, "overlap_comm": False, "reduce_bucket_size": AUTO},
    "ds_z3_offload_config.json": {
        "stage": 3,
        "offload_optimizer": {"device": "cpu"},
        "offload_param": {"device": "cpu"},
        "overlap_comm": False,
        "reduce_bucket_size": AUTO,
    },
}
"""What the JSON files that Axolotl (`deepspeed_configs/`) and LLaMA-Factory
(`examples/deepspeed/`) bring along say of ZeRO, for a YAML file that comes without them."""


@dataclass(kw_only=True, slots=True)
class DeepSpeedSays:
    """What one JSON says."""

    knobs: dict[str, Any] = field(default_factory=dict)
    precision: Precision | None = None
    """None where it is left to the arguments of the training."""
    has_precision: bool = False
    """Whether it says anything of it; Accelerate fills in what is missing, DeepSpeed does not."""
    train_batch_size: int | None = None
    accumulation_steps: int | None = None
    has_auto_bucket: bool = False
    noted: dict[str, Any] = field(default_factory=dict)
    """Knobs that an export of ours has noted, since the tool has no key for them."""
    question: dict[str, Any] = field(default_factory=dict)
    """What an export of ours has noted of its question: the fields of `Setup`."""
    left_out: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def read_named_deepspeed(value: Any, path: Path, keys: Keys, key: str) -> DeepSpeedSays:
    """What the JSON says that another file holds or names.

    Args:
        value: the file's name, or its content.
        path: the file in which it stands.
        keys: of that file, for messages.
        key: under which it stands.

    Raises:
        ConfigError: there is no such file, or a mistake in it.
    """
    if isinstance(value, Mapping):
        return read_deepspeed(Keys(value, keys.file, f"{key}."))
    if not isinstance(value, str):
        raise keys.wrong(key, "the name of a DeepSpeed JSON, or its content")
    found = find_beside(value, path)
    if found is not None:
        file = f"{keys.file}: {key} {shown(value)}"
        return read_deepspeed(Keys(read_document(found, file), file))
    name = Path(value).name
    if name not in PUBLISHED:
        raise ConfigError(
            f"{keys.file}: {key}: there is no file {shown(value)}, neither here nor beside "
            f"{path.name} or in the folders above it; put it there, or give its right name"
        )
    says = read_deepspeed(Keys({"zero_optimization": PUBLISHED[name]}, keys.file))
    says.precision = Precision.BF16 if "_bf16" in name else None
    says.has_precision = says.precision is not None
    says.notes = (f"{key} {name} is not here, and was read as the published file of this name",)
    return says


def read_deepspeed(keys: Keys) -> DeepSpeedSays:
    """What a JSON says.

    Raises:
        ConfigError: a key has a value that DeepSpeed would not take.
    """
    says = DeepSpeedSays()
    says.knobs |= read_rows((Count("micro_batch_size", "train_micro_batch_size_per_gpu"),), keys)
    says.train_batch_size = keys.count("train_batch_size", most=MOST_SAMPLES)
    says.accumulation_steps = keys.count("gradient_accumulation_steps", most=MOST_SAMPLES)
    says.precision = _precision(keys, says)
    _read_zero(keys.section("zero_optimization"), says)
    _read_optimizer(keys.section("optimizer"), says)
    says.knobs |= read_rows(
        (Count("tensor_parallel_size", "autotp_size"),), keys.section("tensor_parallel")
    )
    says.knobs |= read_rows((Count("sequence_parallel_size", "sequence_parallel_size"),), keys)
    _expect_the_usual(keys)
    _read_note(keys, says)
    says.left_out = tuple(keys.unread())
    return says


def _precision(keys: Keys, says: DeepSpeedSays) -> Precision | None:
    """By the sections of bf16 and fp16; None where one of them is left to other settings."""
    asked = {
        Precision.BF16: keys.section("bf16" if "bf16" in keys else "bfloat16"),
        Precision.FP16: keys.section("fp16"),
    }
    enabled = [precision for precision, section in asked.items() if section.flag("enabled")]
    if len(enabled) > 1:
        raise ConfigError(f"{keys.file}: bf16 and fp16 are both enabled; enable one of them")
    _read_slim_states(asked[Precision.BF16], says, is_enabled=Precision.BF16 in enabled)
    for section in asked.values():
        for key, values in _USUAL_SCALE.items():
            section.expect(key, *values)
    says.has_precision = any("enabled" in section for section in asked.values())
    if enabled:
        return enabled[0]
    if any(section.is_auto("enabled") for section in asked.values()):
        return None
    return Precision.FP32


def _read_slim_states(bf16: Keys, says: DeepSpeedSays, *, is_enabled: bool) -> None:
    """Masters and states in bf16, which are one knob; DeepSpeed has a key for each."""
    keys = ("bf16_master_weights_and_grads", "bf16_optimizer_states")
    flags = [bf16.flag(key) for key in keys]
    if all(flags) and is_enabled:
        says.knobs["master_weights"] = MasterWeights.BF16
    elif any(flags):
        for key in keys:
            bf16.leave(key)


def _read_zero(zero: Keys, says: DeepSpeedSays) -> None:
    stage = _ACCELERATES_STAGE if zero.is_auto("stage") else zero.count("stage", least=0) or 0
    if stage > 3:
        raise zero.wrong("stage", "0, 1, 2 or 3")
    says.knobs["zero_stage"] = stage
    # DeepSpeed overlaps where nothing is said with ZeRO-3 alone.
    says.knobs["overlap_comm"] = stage == 3
    says.knobs |= read_rows(_ZERO_ROWS, zero)
    says.has_auto_bucket = zero.is_auto("reduce_bucket_size")
    bucket = zero.count("reduce_bucket_size")
    if bucket is not None:
        says.knobs["reduce_bucket_size"] = bucket
    zero.expect("allgather_bucket_size", bucket or DEFAULT_BUCKET_SIZE)
    _read_offload(zero, says)
    for key, values in _USUAL_ZERO.items():
        zero.expect(key, *values)


def _read_offload(zero: Keys, says: DeepSpeedSays) -> None:
    for place, rows in _DEVICE.items():
        section = zero.section(place)
        says.knobs |= read_rows(rows, section)
        # The path is asked for by --nvme-path: trials write there.
        section.value("nvme_path")
        section.expect("pin_memory", True)
    ratio = zero.section("offload_optimizer").number("ratio")
    if ratio is not None:
        says.knobs["offload_ratio"] = ratio
    older = {"cpu_offload": "offload_optimizer", "cpu_offload_param": "offload_param"}
    for old, place in older.items():
        if zero.flag(old):
            says.knobs[place] = Offload.CPU


def _read_optimizer(optimizer: Keys, says: DeepSpeedSays) -> None:
    name = optimizer.word("type")
    if name is None:
        return
    if name.lower() in _OPTIMIZERS:
        says.knobs["optimizer"] = _OPTIMIZERS[name.lower()]
    else:
        optimizer.leave("type")
    params = optimizer.section("params")
    params.expect("lr", LEARNING_RATE)
    params.expect("torch_adam", True)
    params.expect("fused", True, False)
    params.expect("adam_w_mode", True)
    optimizer_of_ours = says.knobs.get("optimizer")
    if optimizer_of_ours is not None:
        for key, value in OPTIMIZERS[optimizer_of_ours].settings.items():
            params.expect(key, value)


def _expect_the_usual(keys: Keys) -> None:
    """Take keys for read that say what every trial does."""
    for key, values in _USUAL.items():
        keys.expect(key, *values)
    for key in ("_comment", "_note"):
        keys.value(key)


def _read_note(keys: Keys, says: DeepSpeedSays) -> None:
    """What an export has written down that the keys of a JSON cannot say."""
    if NOTE not in keys:
        return
    note = keys.section(NOTE)
    note.value("cannot_say")
    zero = keys.section("zero_optimization")
    for section in (zero, zero.section("offload_param")):
        for key in _DERIVED:
            section.value(key)
    knobs = note.section("knobs")
    said = {knob: _noted(knob, knobs) for knob in KNOBS if knob in knobs}
    if said:
        says.noted = said
        words = ", ".join(f"{knob} {_in_words(value)}" for knob, value in said.items())
        says.notes = (*says.notes, f"its key {NOTE} says {words}")
    question = note.section("question")
    method = question.word("method")
    if method is not None and method not in list(Method):
        raise question.wrong("method", f"one of {', '.join(Method)}")
    said_of = {
        "model": question.word("model"),
        "seq_len": question.count("seq_len", most=MOST_TOKENS),
        "method": Method(method) if method else None,
        "lora_rank": question.count("lora_rank", most=MOST_RANK),
        "lora_targets": question.words("lora_targets") or None,
        "train_batch_size": question.count("global_batch_size", most=MOST_SAMPLES),
    }
    says.question = {name: value for name, value in said_of.items() if value is not None}


def _noted(knob: str, knobs: Keys) -> Any:
    """One knob's value, of its kind; whether they go together is seen where all are known."""
    try:
        value = read_knob(knob, knobs.value(knob))
        return plain_name(value, knob) if type(value) is str and value else value
    except (ConfigError, OverflowError, ValueError) as error:
        raise ConfigError(f"{knobs.file}: {NOTE}.knobs: {error}") from error


def _in_words(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else shown(value)
