"""The user's DeepSpeed configuration with a strategy in it: keys that no knob owns stay.

Does not know where the user's program hands its configuration over.
"""

from __future__ import annotations

import base64
import copy
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from autotune.errors import ConfigError
from autotune.text_file import load_text

__all__ = ["load_configuration", "with_strategy", "without_side_effects"]

_OWNED = frozenset(
    (
        "train_batch_size",
        "train_micro_batch_size_per_gpu",
        "gradient_accumulation_steps",
        "zero_optimization",
        "zero_allow_untested_optimizer",
        "zero_force_ds_cpu_optimizer",
        "bf16",
        "fp16",
        "amp",
        "torch_autocast",
        "data_types",
        "tensor_parallel",
        "pipeline",
        "activation_checkpointing",
        "compile",
        "optimizer",
    )
)
"""Keys that say what knobs say: a strategy takes the place of them all."""

_KEPT_OF_ZERO = ("stage3_gather_16bit_weights_on_model_save", "load_from_fp32_weights")
"""Settings of ZeRO that say how a model is saved and loaded, and not how it is trained."""

_SIDE_EFFECTS: Mapping[str, Any] = {
    "steps_per_print": 2**31 - 1,
    "wall_clock_breakdown": False,
    "dump_state": False,
    "tensorboard": {"enabled": False},
    "wandb": {"enabled": False},
    "comet": {"enabled": False},
    "csv_monitor": {"enabled": False},
    "flops_profiler": {"enabled": False},
    "comms_logger": {"enabled": False},
}
"""What writes, uploads or measures beside the training, turned off."""

_OPTIMIZER_SETTINGS = ("lr", "betas", "eps", "weight_decay")


def load_configuration(given: object) -> dict[str, Any]:
    """A configuration as DeepSpeed takes it: a dictionary, the path of a JSON file, or base64.

    The JSON may have comments, as `DeepSpeedConfig` reads it with hjson.

    Raises:
        ConfigError: it is neither, or the file cannot be read.
    """
    if isinstance(given, Mapping):
        return copy.deepcopy(dict(given))
    if isinstance(given, str | Path):
        try:
            read = _read(given)
        except (OSError, ValueError) as error:
            raise ConfigError(
                f"the DeepSpeed configuration {given} cannot be read: {error}"
            ) from error
        if isinstance(read, dict):
            return read
    raise ConfigError("the DeepSpeed configuration is neither a dictionary nor a JSON file of one")


def _read(given: str | Path) -> object:
    import hjson  # type: ignore[import-untyped]

    is_text = not os.path.exists(given) and not str(given).endswith(".json")
    text = base64.urlsafe_b64decode(str(given)).decode() if is_text else load_text(Path(given))
    return json.loads(json.dumps(hjson.loads(text)))


def with_strategy(
    theirs: Mapping[str, Any], ours: Mapping[str, Any], *, keeps_optimizer: bool = False
) -> dict[str, Any]:
    """Their configuration with ours in the place of what knobs own.

    Args:
        theirs: of the user's program.
        ours: what `space.deepspeed_config` writes for a strategy.
        keeps_optimizer: leave their `optimizer`; it is what a Trainer checks against its own code.

    Returns:
        A new dictionary.
    """
    kept = {key: copy.deepcopy(value) for key, value in theirs.items() if key not in _OWNED}
    own = {key: copy.deepcopy(value) for key, value in ours.items() if key in _OWNED}
    of_zero = theirs.get("zero_optimization", {})
    own.setdefault("zero_optimization", {"stage": 0})
    own["zero_optimization"] |= {
        key: of_zero[key]
        for key in _KEPT_OF_ZERO
        if isinstance(of_zero, Mapping) and key in of_zero
    }
    if keeps_optimizer:
        own.pop("optimizer", None)
        own |= {"optimizer": copy.deepcopy(theirs["optimizer"])} if "optimizer" in theirs else {}
    elif "optimizer" in own:
        own["optimizer"]["params"] |= _settings_of(theirs.get("optimizer"))
    return kept | own


def _settings_of(optimizer: object) -> dict[str, Any]:
    """Learning rate, betas and the like of a configuration's optimizer; what is "auto" is left."""
    params = optimizer.get("params", {}) if isinstance(optimizer, Mapping) else {}
    return {
        name: params[name]
        for name in _OPTIMIZER_SETTINGS
        if name in params and params[name] != "auto"
    }


def without_side_effects(config: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration that writes and uploads nothing."""
    return {**config, **json.loads(json.dumps(_SIDE_EFFECTS))}
