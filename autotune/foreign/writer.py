"""Writes a strategy as files that another tool reads, and says what these cannot hold.

What cannot be held is found by reading the files back. It stands as a comment in the tool's file,
and in the DeepSpeed JSON under a key that DeepSpeed does not read, from which `reader.py` takes
it. Does not know where files are written to.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from autotune.foreign import axolotl, llamafactory
from autotune.foreign.accelerate import accelerate_keys
from autotune.foreign.deepspeed import NOTE
from autotune.foreign.hub_names import published_name
from autotune.foreign.keys import AUTO
from autotune.foreign.reader import setup_of
from autotune.foreign.rows import Row, write_rows
from autotune.foreign.tool import Tool
from autotune.knob_values import Precision
from autotune.machine.hardware import Hardware
from autotune.question.workload import Method, Workload
from autotune.space.deepspeed_config import (
    GRADIENT_CLIPPING,
    LEARNING_RATE,
    clips_gradients,
    deepspeed_config,
)
from autotune.space.strategy import KNOBS, Strategy

__all__ = ["CONFIG_FILE", "Written", "write_setup"]

CONFIG_FILE = "ds_config.json"
"""The DeepSpeed JSON, which the file of every other tool names."""

_FILES = {
    Tool.ACCELERATE: "accelerate.yaml",
    Tool.AXOLOTL: "axolotl.yaml",
    Tool.LLAMAFACTORY: "llamafactory.yaml",
}

_TODO = {
    Tool.ACCELERATE: "Start with: accelerate launch --config_file accelerate.yaml train.py",
    Tool.AXOLOTL: "Add datasets, output_dir and your learning rate; start from this folder with: "
    "axolotl train axolotl.yaml",
    Tool.LLAMAFACTORY: "Add dataset, template, output_dir and your learning rate; start from this "
    "folder with: llamafactory-cli train llamafactory.yaml",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Written:
    """Files by name, and what they cannot say."""

    files: Mapping[str, bytes]
    unsaid: Mapping[str, Any]
    """The knobs that no key of the tool stands for, with their values as plain JSON values."""

    def words(self, tool: Tool) -> str | None:
        """What they cannot say, a line; None where they say everything."""
        if not self.unsaid:
            return None
        knobs = ", ".join(f"{knob} {_shown(value)}" for knob, value in self.unsaid.items())
        return (
            f"{tool.brand} has no key for {knobs}; a run without them is another one "
            "(autotune.apply puts them on a model)"
        )


def write_setup(tool: Tool, workload: Workload, hardware: Hardware, strategy: Strategy) -> Written:
    """The files of a tool that train as a strategy says.

    Args:
        tool: which is to read them.
        workload: what is trained.
        hardware: all ranks.
        strategy: how.

    Raises:
        ConfigError: the strategy cannot be written as a DeepSpeed JSON.
    """
    keys = _keys(tool, workload, hardware, strategy)
    config = deepspeed_config(
        workload,
        strategy,
        num_devices=hardware.num_devices,
        device_type=hardware.device_type,
        nvme_path=hardware.nvme_path,
    )
    if keys is not None and "deepspeed" in keys:
        config = _left_to_the_trainer(config, strategy)
    said, _ = setup_of(tool, keys, config).values(workload, hardware)
    different = {knob for knob in KNOBS if said[knob] != getattr(strategy, knob)}
    own = strategy.to_dict()
    unsaid = {knob: own[knob] for knob in KNOBS if knob in different - _same(strategy)}
    written = Written(files={}, unsaid=unsaid)
    words = written.words(tool)
    note: dict[str, Any] = {"question": _question(workload)}
    if different:
        noted = {knob: own[knob] for knob in KNOBS if knob in different}
        note = {**({"cannot_say": words} if words else {}), "knobs": noted, **note}
    files = {CONFIG_FILE: json.dumps({**config, NOTE: note}, indent=2, allow_nan=False) + "\n"}
    if keys is not None:
        files[_FILES[tool]] = _yaml(keys, [_TODO[tool], *([words] if words else [])])
    return replace(written, files={name: text.encode() for name, text in files.items()})


def _left_to_the_trainer(config: dict[str, Any], strategy: Strategy) -> dict[str, Any]:
    """A JSON with `"auto"` for what the YAML says: the Trainer refuses two that differ."""
    left = dict(config)
    for key in ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_clipping"):
        if key in left:
            left[key] = AUTO
    left["gradient_accumulation_steps"] = AUTO
    if strategy.precision is Precision.FP32 and "bf16" not in left:
        # Of a JSON without it Accelerate takes the precision for left open.
        left["bf16"] = {"enabled": False}
    if "optimizer" in left:
        params = dict(left["optimizer"]["params"])
        for key in ("lr", "betas", "eps", "weight_decay"):
            if key in params:
                params[key] = AUTO
        left["optimizer"] = {**left["optimizer"], "params": params}
    return left


def _same(strategy: Strategy) -> set[str]:
    """Knobs whose value the files do say, in another form than the strategy has it."""
    same = {"overlap_comm", "reduce_bucket_size"} if strategy.zero_stage else set()
    if strategy.lora_alpha == 2 * strategy.lora_rank:
        same.add("lora_alpha")
    return same


def _question(workload: Workload) -> dict[str, Any]:
    question = {
        "model": workload.model.name,
        "seq_len": workload.seq_len,
        "global_batch_size": workload.global_batch_size,
        "method": str(workload.method),
    }
    if workload.method is not Method.FULL:
        question |= {
            "lora_rank": workload.lora_rank,
            "lora_targets": list(workload.lora_targets),
        }
    return question


def _keys(
    tool: Tool, workload: Workload, hardware: Hardware, strategy: Strategy
) -> dict[str, Any] | None:
    """The tool's own file; None for DeepSpeed, which has the JSON alone."""
    match tool:
        case Tool.DEEPSPEED:
            return None
        case Tool.ACCELERATE:
            return accelerate_keys(strategy, hardware, CONFIG_FILE)
        case Tool.AXOLOTL:
            model = {
                "base_model": published_name(workload.model.name),
                "sequence_len": workload.seq_len,
            }
            adapters = _adapters(axolotl.adapter_keys, workload, strategy)
            rows: tuple[Row, ...] = axolotl.ROWS
        case Tool.LLAMAFACTORY:
            model = {
                "model_name_or_path": published_name(workload.model.name),
                "stage": "sft",
                "do_train": True,
                "cutoff_len": workload.seq_len,
            }
            adapters = _adapters(llamafactory.adapter_keys, workload, strategy)
            rows = llamafactory.ROWS
    ranks = hardware.num_devices
    return {
        **model,
        **adapters,
        **write_rows(rows, strategy),
        "gradient_accumulation_steps": strategy.gradient_accumulation_steps(
            workload.global_batch_size, ranks
        ),
        "learning_rate": LEARNING_RATE,
        "max_grad_norm": GRADIENT_CLIPPING if clips_gradients(strategy) else 0.0,
        **_precision(strategy),
        "deepspeed": CONFIG_FILE,
    }


def _precision(strategy: Strategy) -> dict[str, Any]:
    """The same of both YAML files, which take fp32 where neither is true."""
    return {
        "bf16": strategy.precision is Precision.BF16,
        "fp16": strategy.precision is Precision.FP16,
    }


def _adapters(
    keys_of: Callable[[Method, int, int, tuple[str, ...]], dict[str, Any]],
    workload: Workload,
    strategy: Strategy,
) -> dict[str, Any]:
    """Method and adapters; groups of layers by the names of their layers."""
    model, rank = workload.model, strategy.lora_rank
    groups = {"attention": tuple(model.attention_linears), "mlp": tuple(model.mlp_linears)}
    targets = tuple(
        name
        for target in workload.adapter_targets(strategy.lora_targets)
        for name in groups.get(target, (target,))
    )
    return keys_of(workload.method, rank, strategy.lora_alpha or 2 * rank, targets)


def _yaml(keys: Mapping[str, Any], comments: list[str]) -> str:
    from ruamel.yaml import YAML

    yaml: Any = YAML(typ="safe")
    yaml.Representer = _with_points()
    yaml.default_flow_style, yaml.sort_base_mapping_type_on_output, yaml.width = False, False, 4096
    stream = io.StringIO()
    yaml.dump(dict(keys), stream)
    lines = ["A training strategy found by autotune.", *comments]
    return "".join(f"# {line}\n" for line in lines) + stream.getvalue()


def _with_points() -> type[Any]:
    """Writes 1.0e-05 for 1e-05, which readers of YAML 1.1 take for text."""
    from ruamel.yaml.representer import SafeRepresenter

    class WithPoints(SafeRepresenter):
        def represent_float(self, data: float) -> Any:
            """A number that has a point, whatever its size."""
            text = f"{data:.1e}" if "e" in str(data) else str(data)
            return self.represent_scalar("tag:yaml.org,2002:float", text)

    WithPoints.add_representer(float, WithPoints.represent_float)
    return WithPoints


def _shown(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
