"""The software that all nodes of a study must have in common.

Looks at metadata only. Does not know Ray.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import metadata

from autotune.errors import ConfigError

__all__ = ["own_versions", "require_versions"]

_PACKAGES = (
    "autotune",
    "torch",
    "transformers",
    "deepspeed",
    "peft",
    "bitsandbytes",
    "liger-kernel",
    "flash-attn",
)
"""Those whose code runs in a trial."""

_NONE = "none"


def own_versions() -> dict[str, str]:
    """The version of each package here; `none` where it is not installed."""
    return {package: _version(package) for package in _PACKAGES}


def require_versions(wanted: Mapping[str, str]) -> None:
    """Compare this node's packages with those of whoever runs the search.

    Raises:
        ConfigError: some differ; the message names them.
    """
    differing = [
        f"{package} {here} (where the search runs: {there})"
        for package, there in wanted.items()
        if (here := _version(package)) != there
    ]
    if differing:
        raise ConfigError(f"it has {', '.join(differing)}; install the same on all nodes")


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return _NONE
