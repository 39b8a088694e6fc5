"""The pages that people read, from the README to docs/, and the commands that they print."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

__all__ = ["PAGES", "ROOT", "PrintedCommand", "inline_commands", "printed_commands", "yaml_block"]

ROOT = Path(__file__).resolve().parent.parent

PAGES: tuple[Path, ...] = (
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "CHANGELOG.md",
    ROOT / "results" / "README.md",
    *sorted((ROOT / "docs").glob("*.md")),
)

_FENCE = re.compile(r"^```(\w*)$")
_SHELL = ("sh", "bash", "console")
_INLINE = re.compile(r"`(autotune (?:search|plan|report|export|doctor)[^`]*)`")


@dataclass(frozen=True, slots=True)
class PrintedCommand:
    """One line that a page tells people to type."""

    page: str
    text: str

    @property
    def parts(self) -> tuple[str, ...]:
        """The commands that `&&` joins, without variables that are exported before them."""
        parts = (part.strip() for part in self.text.split("&&"))
        return tuple(part for part in parts if not part.startswith("export "))


def printed_commands() -> tuple[PrintedCommand, ...]:
    """Every command in a block of a page, each text once, in the order of the pages."""
    found: dict[str, PrintedCommand] = {}
    for page in PAGES:
        for text in _commands(page.read_text(encoding="utf-8")):
            found.setdefault(text, PrintedCommand(page.name, text))
    return tuple(found.values())


def inline_commands() -> tuple[PrintedCommand, ...]:
    """Every command of autotune that stands within a sentence or a table."""
    return tuple(
        PrintedCommand(page.name, text)
        for page in PAGES
        for text in _INLINE.findall(page.read_text(encoding="utf-8"))
    )


def yaml_block(page: str, beginning: str) -> str:
    """The YAML block of a page that begins so."""
    text = (ROOT / page).read_text(encoding="utf-8")
    [block] = [
        block
        for block in re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
        if block.startswith(beginning)
    ]
    return str(block)


def _commands(text: str) -> Iterator[str]:
    """The lines of shell blocks, of indented blocks, and after a prompt in other blocks."""
    fence: str | None = None
    for line in text.splitlines():
        mark = _FENCE.match(line)
        if mark:
            fence = mark[1] if fence is None else None
        elif fence in _SHELL and line.strip():
            yield line.strip()
        elif fence is not None and line.startswith("$ "):
            yield line.removeprefix("$ ")
        elif fence is None and line.startswith("    ") and line.strip():
            yield line.strip()
