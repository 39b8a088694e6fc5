"""The environment of a trial, as an export sets it: in a shell script and in Python.

What the user has in his own environment goes before it. Does not know which settings there are,
nor why a trial has them.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from autotune.launch.rank_environment import training_settings
from autotune.machine.extensions import UNUSED_EXTENSIONS
from autotune.machine.hardware import DeviceType, Hardware
from autotune.machine.settings import ALLOCATOR_NAMES, settings_in
from autotune.trials.trial import Trial

__all__ = ["ExportSettings", "planned_settings", "settings_of"]

_THREADS = "OMP_NUM_THREADS"
_ARCHITECTURES = "TORCH_CUDA_ARCH_LIST"


@dataclass(frozen=True, kw_only=True, slots=True)
class ExportSettings:
    """Settings of one host's ranks."""

    values: Mapping[str, str]
    """By name. Where it names no number of threads, each rank takes its share of the cores that
    the host has."""
    source: str
    """Where they come from, in words."""
    device_type: DeviceType
    ranks_per_host: int

    def shell_lines(self) -> Iterator[str]:
        """Lines of a POSIX shell script; a variable that is set already stays as it is."""
        for name, value in self.values.items():
            # Of the allocator's two names torch reads one alone, which may not be the user's.
            names = ALLOCATOR_NAMES if name in ALLOCATOR_NAMES else (name,)
            is_set = "".join(f"${{{each}+set}}" for each in names)
            yield f'[ -n "{is_set}" ] || export {name}={shlex.quote(value)}'
        if _THREADS not in self.values:
            yield "cores=$(getconf _NPROCESSORS_ONLN)"
            share = f"$((cores > {self.ranks_per_host} ? cores / {self.ranks_per_host} : 1))"
            yield f'[ -n "${{{_THREADS}+set}}" ] || export {_THREADS}={share}'
        if self.device_type is DeviceType.CUDA:
            yield "# The extension builder of DeepSpeed cannot read 9.0a."
            readable = f"$(printf %s \"${_ARCHITECTURES}\" | sed 's/\\([0-9]\\)[a-z]*/\\1/g')"
            yield f'[ -z "${{{_ARCHITECTURES}-}}" ] || export {_ARCHITECTURES}="{readable}"'

    def python_lines(self) -> Iterator[str]:
        """Python statements that set the environment, for a script before it imports torch."""
        for name, value in self.values.items():
            others = [each for each in ALLOCATOR_NAMES if each != name]
            indent = ""
            if name in ALLOCATOR_NAMES:
                yield f'if "{others[0]}" not in os.environ:  # another name of the same setting'
                indent = "    "
            # Values hold no character that would have to be escaped.
            yield f'{indent}os.environ.setdefault("{name}", "{value}")'
        if _THREADS not in self.values:
            share = f"str(max(1, (os.cpu_count() or 1) // {self.ranks_per_host}))"
            yield f'os.environ.setdefault("{_THREADS}", {share})'

    def extension_lines(self) -> Iterator[str]:
        """Statements after `import deepspeed` that leave out what training does not call."""
        if self.device_type is DeviceType.CPU:
            yield ""
            yield "# As in the trial: this extension takes minutes to compile and is not needed."
            for name in UNUSED_EXTENSIONS:
                yield f'deepspeed.ops.__compatible_ops__["{name}"] = False'

    def to_dict(self) -> dict[str, Any]:
        """As JSON values, for `provenance.json`."""
        is_cpu = self.device_type is DeviceType.CPU
        return {
            "variables": dict(self.values),
            "source": self.source,
            "extensions_left_out": list(UNUSED_EXTENSIONS) if is_cpu else [],
        }


def settings_of(trial: Trial, hardware: Hardware) -> ExportSettings:
    """What the ranks of a trial had, as they wrote it down where they ran.

    Args:
        trial: with a measurement; its last run says.
        hardware: all its ranks.
    """
    runs = [run for run in (trial.measurement, *trial.confirmations) if run is not None]
    # The record is a file, which others may have written.
    recorded = [settings_in(run.environment) for run in runs if run.environment]
    if not recorded:
        return _settings(
            hardware,
            "this version of autotune: the one that ran the trial did not write down what it had",
        )
    return ExportSettings(
        values=recorded[-1],
        source="the ranks of the trial, where it ran",
        device_type=hardware.device_type,
        ranks_per_host=hardware.devices_per_node,
    )


def planned_settings(hardware: Hardware) -> ExportSettings:
    """What a trial would have on hardware that is not here."""
    return _settings(hardware, "what a trial would have there; nothing has run")


def _settings(hardware: Hardware, source: str) -> ExportSettings:
    values = settings_in(training_settings(hardware.device_type, {}, cores=None))
    return ExportSettings(
        values=values,
        source=source,
        device_type=hardware.device_type,
        ranks_per_host=hardware.devices_per_node,
    )
