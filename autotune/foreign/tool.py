"""The tools whose files are read and written, and the keys that tell their files apart.

Does not know what the keys mean.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum

from autotune.errors import ConfigError

__all__ = ["Tool", "tool_of"]


class Tool(StrEnum):
    """A tool whose configuration file is known."""

    DEEPSPEED = "deepspeed"
    ACCELERATE = "accelerate"
    AXOLOTL = "axolotl"
    LLAMAFACTORY = "llamafactory"

    @property
    def brand(self) -> str:
        """Its name, as it writes it."""
        return _BRANDS[self]


_BRANDS = {
    Tool.DEEPSPEED: "DeepSpeed",
    Tool.ACCELERATE: "Accelerate",
    Tool.AXOLOTL: "Axolotl",
    Tool.LLAMAFACTORY: "LLaMA-Factory",
}

_SIGNS: Mapping[Tool, tuple[str, ...]] = {
    Tool.ACCELERATE: ("distributed_type", "compute_environment", "deepspeed_config"),
    Tool.AXOLOTL: ("base_model",),
    Tool.LLAMAFACTORY: ("model_name_or_path", "finetuning_type"),
    Tool.DEEPSPEED: (
        "zero_optimization",
        "train_micro_batch_size_per_gpu",
        "train_batch_size",
        "zero_allow_untested_optimizer",
    ),
}
"""Keys of the top level that only files of this tool have; one of them is enough."""


def tool_of(tree: Mapping[object, object], file: str) -> Tool:
    """The tool that a file is of, by its keys.

    Args:
        tree: the file's top level.
        file: its name in messages.

    Raises:
        ConfigError: it is of none, or of several.
    """
    found = {
        tool: next((key for key in keys if key in tree), None) for tool, keys in _SIGNS.items()
    }
    signs = {tool: key for tool, key in found.items() if key is not None}
    if len(signs) == 1:
        return next(iter(signs))
    if signs:
        words = " and ".join(f"{key} of {tool.brand}" for tool, key in signs.items())
        raise ConfigError(f"{file}: it has the keys {words}; give a file of one tool")
    known = "; ".join(f"{keys[0]} ({tool.brand})" for tool, keys in _SIGNS.items())
    raise ConfigError(
        f"{file}: no configuration of DeepSpeed, Accelerate, Axolotl or LLaMA-Factory: it has "
        f"none of their keys, such as {known}"
    )
