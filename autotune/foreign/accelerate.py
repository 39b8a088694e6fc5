"""An Accelerate YAML, both ways.

Keys as Accelerate 1.15 has them (`commands/config/config_args.py`, `ClusterConfig`;
`commands/config/cluster.py`). Does not know how the file is found, nor what it is asked for.
"""

from __future__ import annotations

from typing import Any

from autotune.errors import ConfigError
from autotune.foreign.keys import MOST_RANKS, MOST_SAMPLES, Keys, shown
from autotune.foreign.rows import Named, Row
from autotune.knob_values import Offload, Precision
from autotune.machine.hardware import DeviceType, Hardware
from autotune.space.deepspeed_config import GRADIENT_CLIPPING
from autotune.space.strategy import Strategy

__all__ = [
    "accelerate_keys",
    "expect_the_usual",
    "read_dynamo",
    "read_parallelism",
    "read_plugin",
    "read_precision",
]

_DEFAULT_STAGE = 2
"""ZeRO's stage where the file says none: that of `DeepSpeedPlugin`."""

_PLACES = {str(place): place for place in Offload}

_PLUGIN_ROWS: tuple[Row, ...] = (
    Named("offload_optimizer", "offload_optimizer_device", _PLACES),
    Named("offload_param", "offload_param_device", _PLACES),
)

_COMPILER = "INDUCTOR"

_PRECISIONS = {"bf16": Precision.BF16, "fp16": Precision.FP16, "no": Precision.FP32}


def expect_the_usual(keys: Keys) -> None:
    """Take keys for read that say nothing of time and memory, or what every trial does."""
    for key in ("compute_environment", "machine_rank", "main_training_function", "use_cpu"):
        keys.value(key)
    keys.expect("debug", False)
    keys.expect("downcast_bf16", "no", False)
    keys.expect("num_machines", 1)
    keys.expect("rdzv_backend", "static")
    keys.expect("same_network", True)
    plugin = keys.section("deepspeed_config")
    # Trials divide a model as it is made.
    plugin.value("zero3_init_flag")
    plugin.expect("deepspeed_multinode_launcher", "standard")


def read_plugin(plugin: Keys) -> tuple[dict[str, Any], int | None]:
    """The knobs and the accumulation that `deepspeed_config` says without a file of its own."""
    stage = plugin.count("zero_stage", least=0)
    if stage is not None and stage > 3:
        raise plugin.wrong("zero_stage", "0, 1, 2 or 3")
    knobs: dict[str, Any] = {"zero_stage": _DEFAULT_STAGE if stage is None else stage}
    # The plugin says nothing of it, and DeepSpeed overlaps then with ZeRO-3 alone.
    knobs["overlap_comm"] = knobs["zero_stage"] == 3
    for row in _PLUGIN_ROWS:
        knobs |= row.read(plugin)
    for key in ("offload_optimizer_nvme_path", "offload_param_nvme_path"):
        plugin.value(key)
    plugin.expect("gradient_clipping", GRADIENT_CLIPPING)
    accumulation = plugin.count("gradient_accumulation_steps", most=MOST_SAMPLES)
    return knobs, accumulation


def read_precision(keys: Keys) -> Precision | None:
    """The precision of forward and backward; None where nothing is said of it.

    Raises:
        ConfigError: it is none of Accelerate's.
    """
    # `no` without quotes is false to readers of YAML 1.1.
    word = "no" if keys.value("mixed_precision") is False else keys.word("mixed_precision")
    if word == "fp8":
        keys.leave("mixed_precision")
        return Precision.BF16
    if word is not None and word not in _PRECISIONS:
        raise keys.wrong("mixed_precision", f"one of {', '.join((*_PRECISIONS, 'fp8'))}")
    return None if word is None else _PRECISIONS[word]


def read_dynamo(keys: Keys) -> dict[str, Any]:
    """Whether the layers are compiled."""
    dynamo = keys.section("dynamo_config")
    backend = dynamo.word("dynamo_backend")
    dynamo.value("dynamo_use_regional_compilation")
    if backend is None or backend.upper() in ("NO", "FALSE"):
        return {}
    if backend.upper() != _COMPILER:
        dynamo.leave("dynamo_backend")
    return {"torch_compile": True}


def read_parallelism(keys: Keys) -> dict[str, Any]:
    """Ranks that share a sample, by DeepSpeed's Ulysses."""
    section = keys.section("parallelism_config")
    backend = section.word("parallelism_config_sp_backend")
    size = section.count("parallelism_config_sp_size", most=MOST_RANKS)
    if size is None or size == 1:
        return {}
    if backend not in (None, "deepspeed"):
        raise ConfigError(
            f"{keys.file}: parallelism_config_sp_backend {shown(backend)}: autotune has deepspeed "
            "alone"
        )
    return {"sequence_parallel_size": size}


def accelerate_keys(strategy: Strategy, hardware: Hardware, config_file: str) -> dict[str, Any]:
    """The whole file.

    Args:
        strategy: how it trains.
        hardware: all ranks.
        config_file: the name of the DeepSpeed JSON beside it. With one, Accelerate takes neither
            precision nor ZeRO's stage from here (`DeepSpeedPlugin`).
    """
    plugin: dict[str, Any] = {"deepspeed_config_file": config_file}
    if strategy.zero_stage == 3:
        plugin["zero3_init_flag"] = True
    keys: dict[str, Any] = {
        "compute_environment": "LOCAL_MACHINE",
        "distributed_type": "DEEPSPEED",
        "deepspeed_config": plugin,
        "num_machines": hardware.num_nodes,
        "num_processes": hardware.num_devices,
        "machine_rank": 0,
        "main_training_function": "main",
        "use_cpu": hardware.device_type is DeviceType.CPU,
    }
    if strategy.torch_compile:
        keys["dynamo_config"] = {
            "dynamo_backend": _COMPILER,
            "dynamo_use_regional_compilation": True,
        }
    if strategy.sequence_parallel_size > 1:
        keys["parallelism_config"] = {
            "parallelism_config_sp_size": strategy.sequence_parallel_size,
            "parallelism_config_sp_backend": "deepspeed",
        }
    return keys
