"""The user's training command: what Python runs, with which arguments, in which folder.

Does not know how a launcher's words are read, nor what is put in the place of its settings.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from autotune.errors import ConfigError
from autotune.names import PrintableText, printable

__all__ = ["PLACEHOLDERS", "PROGRAM", "CommandKind", "TrainingCommand"]

PLACEHOLDERS: Mapping[str, str] = {
    "micro_batch_size": "samples of one micro-batch of one rank",
    "gradient_accumulation_steps": "micro-batches of one optimizer step",
    "ds_config": "the path of the DeepSpeed JSON",
    "output_dir": "a folder for what the run writes",
}
"""What a command may leave to autotune, in braces, and what stands there in a trial."""

PROGRAM = "AUTOTUNE_PROGRAM"
"""Variable of a console script's name in `TrainingCommand.environment`."""

_PLACEHOLDER = re.compile(r"\{(\w+)(?:=([^{}]*))?\}")
_COUNTS = ("micro_batch_size", "gradient_accumulation_steps")
_MOST_WORDS = 4096
_LONGEST_WORD = 2**17
"""Linux takes no longer word of a command (`MAX_ARG_STRLEN`)."""


class CommandKind(StrEnum):
    """What Python runs as `__main__`."""

    FILE = "file"
    MODULE = "module"
    FUNCTION = "function"
    """The entry point of an installed console script, as `package.module:function`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingCommand:
    """One training command, without the words of its launcher.

    Raises:
        ConfigError: an unknown placeholder, or a first value of one that is no whole number.
    """

    kind: CommandKind
    target: str
    """Path of a file, name of a module, or `module:function`."""
    arguments: tuple[str, ...] = ()
    """Words after it, placeholders among them."""
    folder: str
    """The folder that it runs in."""
    passes_local_rank: bool = False
    """Whether each rank gets `--local_rank=N`, as the `deepspeed` launcher gives it."""
    environment: Mapping[str, str] = field(default_factory=dict, hash=False)
    """What its launcher adds to the environment of each rank."""

    def __post_init__(self) -> None:
        """Refuse placeholders that nothing stands for."""
        for name, first in self._placeholders():
            if name not in PLACEHOLDERS:
                known = ", ".join(f"{{{each}}}" for each in PLACEHOLDERS)
                raise ConfigError(
                    f"-- COMMAND: there is no placeholder {{{printable(name, 'placeholder')}}}; "
                    f"placeholders are {known}"
                )
            if first is not None and name in _COUNTS and not _is_count(first):
                raise ConfigError(
                    f"-- COMMAND: {{{name}={first}}} must give a whole number of at least 1, "
                    f"such as {{{name}=4}}"
                )

    def _placeholders(self) -> Iterator[tuple[str, str | None]]:
        for argument in self.arguments:
            for match in _PLACEHOLDER.finditer(argument):
                yield match[1], match[2]

    @property
    def placeholders(self) -> frozenset[str]:
        """The names of those that it has."""
        return frozenset(name for name, _ in self._placeholders())

    @property
    def first_values(self) -> Mapping[str, str]:
        """What the user's own run has in a placeholder's place, by `{name=value}`."""
        return {name: first for name, first in self._placeholders() if first is not None}

    def filled(self, values: Mapping[str, str]) -> list[str]:
        """The arguments with values in the place of the placeholders.

        Args:
            values: one for each placeholder that the command has.
        """

        def replaced(argument: str) -> str:
            return _PLACEHOLDER.sub(lambda match: values[match[1]], argument)

        return [replaced(argument) for argument in self.arguments]

    def __str__(self) -> str:
        """As a person would type it in a shell, without its launcher."""
        program = {
            CommandKind.FILE: [self.target],
            CommandKind.MODULE: ["-m", self.target],
            CommandKind.FUNCTION: [self.environment.get(PROGRAM, self.target)],
        }
        return shlex.join((*program[self.kind], *self.arguments))

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON values; `from_dict` reads it back."""
        values = asdict(self)
        return values | {"kind": str(self.kind), "arguments": list(self.arguments)}

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> TrainingCommand:
        """Read back what `to_dict` wrote.

        Raises:
            ConfigError: it is no command of autotune.
        """
        try:
            read = _Record.model_validate(record)
        except ValidationError as error:
            mistake = error.errors(include_url=False, include_input=False)[0]
            where = ".".join(map(str, mistake["loc"]))
            raise ConfigError(
                f"this is no command of autotune: {where}: {mistake['msg']}"
            ) from None
        values = dict(read)
        return cls(**(values | {"arguments": tuple(read.arguments)}))

    @classmethod
    def checked_words(cls, words: Sequence[str]) -> list[str]:
        """The words after `--`, which may be shown and recorded.

        Raises:
            ConfigError: there are none, too many, or one has control characters or is a secret.
        """
        if not words:
            raise ConfigError("-- COMMAND: give the training command after --, as train.py --args")
        if len(words) > _MOST_WORDS or any(len(word) > _LONGEST_WORD for word in words):
            raise ConfigError(f"-- COMMAND: it has over {_MOST_WORDS:,} words, or a word too long")
        _refuse_secrets(words)
        return [_word(word) for word in words]


def _word(text: str) -> str:
    """A word of a command, checked; an empty one may stand there."""
    return printable(text, "-- COMMAND", longest=_LONGEST_WORD) if text.strip(" ") else text


_Word = Annotated[str, AfterValidator(_word)]


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: CommandKind
    target: PrintableText
    arguments: list[_Word] = Field(default=[], max_length=_MOST_WORDS)
    folder: PrintableText
    passes_local_rank: bool = False
    environment: dict[PrintableText, _Word] = Field(default={}, max_length=1000)


_SECRET_OPTION = re.compile(
    r"(?i)--?(?:\w+[_-])?(?:(?:hub|hf|auth|access|api|wandb)[_-]?(?:token|key)|password|secret)"
)
_SECRET_VALUE = re.compile(
    r"\b(?:hf_[A-Za-z0-9]{16,}|sk-[\w-]{16,}|gh[opsu]_\w{20,}|AKIA[0-9A-Z]{16})\b"
    r"|://[^/@:\s]+:[^/@\s]+@"
)
"""Tokens by the form that their makers give them, and the password of a URL."""

_NO_SECRETS = ("", "true", "false", "none", "null")


def _refuse_secrets(words: Sequence[str]) -> None:
    """Refuse what must not stand in a question, a report or an export."""
    for word, following in zip(words, (*words[1:], ""), strict=True):
        option, separator, value = word.partition("=")
        given = value if separator else "" if following.startswith("-") else following
        is_told = _SECRET_OPTION.fullmatch(option) and given.lower() not in _NO_SECRETS
        if is_told or _SECRET_VALUE.search(word):
            what = option if is_told else "a word"
            raise ConfigError(
                f"-- COMMAND: {what} holds a secret, and commands are shown and recorded; leave "
                "it out, and set the program's own environment variable, such as HF_TOKEN"
            )


def _is_count(text: str) -> bool:
    return text.isascii() and text.isdigit() and 0 < int(text) < 2**31
