"""The command line that a user typed, with other options, ready to paste."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

__all__ = ["CommandLine"]


@dataclass(frozen=True, slots=True)
class CommandLine:
    """What stands behind `autotune`: the command's name first."""

    tokens: Sequence[str]

    @classmethod
    def typed(cls) -> CommandLine:
        """The one of this process; what it shows of a storage has no secret."""
        return cls(tuple(map(_without_secret, sys.argv[1:])))

    @property
    def _own(self) -> Sequence[str]:
        """The tokens before `--`; behind it stand those of the user's training command."""
        end = self.tokens.index("--") if "--" in self.tokens else len(self.tokens)
        return self.tokens[:end]

    def has(self, flag: str) -> bool:
        """Whether an option is given."""
        return any(token.partition("=")[0] == flag for token in self._own)

    def value(self, flag: str) -> str | None:
        """What an option is given; None where it is not given."""
        for token, following in zip(self._own, (*self._own[1:], ""), strict=True):
            name, separator, value = token.partition("=")
            if name == flag:
                return value if separator else following
        return None

    def having(self, options: Mapping[str, str]) -> str:
        """The whole line with these options in the place of what it says of them, for a shell."""
        tokens: list[str] = []
        left = dict(options)
        skips = False
        for token in self._own:
            flag, _, _ = token.partition("=")
            if skips:
                skips = False
            elif flag in options:
                skips = "=" not in token
                if flag in left:
                    tokens += [flag, left.pop(flag)]
            else:
                tokens.append(token)
        added = (part for pair in left.items() for part in pair)
        return shlex.join(["autotune", *tokens, *added, *self.tokens[len(self._own) :]])


def _without_secret(token: str) -> str:
    """A token as it may be shown: only a storage's URL can hold a password."""
    flag, separator, value = token.partition("=")
    if separator and flag.startswith("--"):
        return f"{flag}={_without_secret(value)}"
    if "://" not in token:
        return token
    from autotune.study.storage_address import shown

    return shown(token)
