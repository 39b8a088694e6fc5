"""`--from`: a file of another tool fills in what the command line leaves out, and is the baseline.

What is typed wins; where both say something, the difference is said. Does not know what the keys
of such a file mean.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from autotune.cli.options import nearest_batches

if TYPE_CHECKING:
    from rich.console import Console

    from autotune.foreign.setup import Setup
    from autotune.machine.hardware import Hardware
    from autotune.machine.software import Software
    from autotune.question.workload import Workload
    from autotune.study.baseline import Baseline

__all__ = ["From", "FromFile"]

_MOST_KEYS = 40
"""Keys without a counterpart that a line names."""

_FLAGS = {
    "model": "--model",
    "seq_len": "--seq-len",
    "method": "--method",
    "lora_rank": "--lora-rank",
    "lora_targets": "--lora-targets",
}
"""The options that a file can fill in, by the name of their parameter."""

_HINTS = {"model": "give --model with a preset of its size, or a folder with config.json"}

From = Annotated[
    Path | None,
    typer.Option(
        "--from",
        metavar="FILE",
        help="What you have: a DeepSpeed JSON, or a YAML of Accelerate, Axolotl or LLaMA-Factory. "
        "It fills in model, lengths, batch and method where they are not given, and its strategy "
        "is the baseline that the answer is compared with.",
        show_default="no baseline",
    ),
]


@dataclass(frozen=True, slots=True)
class FromFile:
    """The file of one command, if it has one."""

    setup: Setup | None
    console: Console

    @classmethod
    def read(cls, path: Path | None, console: Console) -> FromFile:
        """Read the file, and say which of its keys have no counterpart.

        Raises:
            ConfigError: it cannot be read; the message names the file and the key.
        """
        if path is None:
            return cls(None, console)
        from autotune.foreign.reader import read_setup

        setup = read_setup(path)
        given = cls(setup, console)
        given._say(f"read as {setup.tool.brand}'s", *setup.notes)
        if setup.left_out:
            given._say(f"keys without a counterpart here, left out: {_listed(setup.left_out)}")
        return given

    def filled(self, options: Any) -> dict[str, Any]:
        """The options that the file fills in, by the name of their parameter.

        Args:
            options: has an attribute for each; those that are not typed have defaults.

        Raises:
            ConfigError: neither says the model.
        """
        from autotune.errors import ConfigError
        from autotune.nothing_fits.command_line import CommandLine

        typed, filled = CommandLine.typed(), {}
        for name, flag in _FLAGS.items():
            told = self._told(name)
            if told is None:
                continue
            if not typed.has(flag):
                filled[name] = told
            elif str(getattr(options, name)) != str(told):
                self._say(f"it says {told}; {flag} {getattr(options, name)} is used")
        if options.model is None and "model" not in filled:
            source = f": {self.setup.file} names none" if self.setup is not None else ""
            raise ConfigError(
                f"--model is missing{source}; give a preset, a folder with config.json, or a "
                "Hugging Face id"
            )
        return filled

    def _told(self, name: str) -> Any:
        """What the file says, as the option of that name takes it."""
        value = getattr(self.setup, name, None)
        if isinstance(value, tuple):
            return ",".join(value)
        return str(value) if name == "method" and value is not None else value

    def global_batch(self, typed: int | None, hardware: Hardware) -> int | None:
        """The global batch that is typed, or that of the file; None where neither says one."""
        ranks = hardware.num_devices
        told = None if self.setup is None else self.setup.global_batch(ranks)
        if typed is None:
            return told
        if told is not None and told != typed:
            self._say(
                f"its global batch is {told} on {ranks} devices; --global-batch {typed} is used"
            )
        return typed

    def whole_batch(self, typed: int | None, hardware: Hardware) -> int | None:
        """As `global_batch`, of which every device takes as much as the others.

        Raises:
            ConfigError: the devices cannot share that of the file evenly.
        """
        from autotune.errors import ConfigError

        batch, ranks = self.global_batch(typed, hardware), hardware.num_devices
        if typed is None and batch is not None and batch % ranks:
            assert self.setup is not None
            raise ConfigError(
                f"--from {self.setup.file}: its global batch {batch} is not divisible by "
                f"{ranks} devices; {nearest_batches(batch, ranks)} with --global-batch"
            )
        return batch

    def baseline(
        self, workload: Workload, hardware: Hardware, software: Software
    ) -> Baseline | None:
        """What the file trains with, as the question has it; None without a file.

        Raises:
            ConfigError: its micro-batch does not divide the global batch.
        """
        if self.setup is None:
            return None
        from autotune.errors import ConfigError
        from autotune.study.baseline import Baseline

        made = self.setup.strategy(workload, hardware, software)
        size, batch = self.setup.samples_at_once(hardware.num_devices), workload.global_batch_size
        if batch % size:
            raise ConfigError(
                f"--from {self.setup.file}: its micro-batches are {size} samples on "
                f"{hardware.num_devices} devices, which do not divide the global batch {batch}; "
                f"{nearest_batches(batch, size)} with --global-batch"
            )
        if made.notes:
            self._say(f"filled in: {'; '.join(made.notes)}")
        if made.strategy is None:
            self._say(f"its strategy cannot run here, so there is no baseline: {made.problem}")
        else:
            self._say(f"baseline: {made.strategy}")
        return Baseline(source=self.setup.file, strategy=made.strategy, problem=made.problem)

    def checked(self, read: Callable[[], Workload]) -> Workload:
        """What a function makes of the options; an error names the file if that said the value.

        Raises:
            ConfigError: a value that cannot be.
        """
        from autotune.errors import ConfigError
        from autotune.nothing_fits.command_line import CommandLine

        try:
            return read()
        except ConfigError as error:
            words, typed = str(error), CommandLine.typed()
            for name, flag in _FLAGS.items():
                if words.startswith(flag) and self._told(name) is not None and not typed.has(flag):
                    assert self.setup is not None
                    hint = _HINTS.get(name, f"give {flag}")
                    raise ConfigError(f"--from {self.setup.file}: {words}; {hint}") from error
            raise

    def _say(self, *sentences: str) -> None:
        from autotune.names import one_line

        assert self.setup is not None
        words = one_line(f"--from {self.setup.file}: {'; '.join(sentences)}")
        self.console.print(words, markup=False, highlight=False, soft_wrap=True)


def _listed(keys: tuple[str, ...]) -> str:
    shown = ", ".join(keys[:_MOST_KEYS])
    return shown if len(keys) <= _MOST_KEYS else f"{shown} and {len(keys) - _MOST_KEYS} more"
