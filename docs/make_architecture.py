"""Writes the file tree of docs/architecture.md from the first sentences of the docstrings.

Run it in any folder after a module was added, moved or described anew:

    python docs/make_architecture.py

The tree stands between two markers; the text around it is written by hand and stays. With
`--check` nothing is written, and the exit status is 1 where the tree is out of date.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

__all__ = ["file_tree", "first_sentence", "is_current", "main", "with_tree"]

_ROOT = Path(__file__).resolve().parent.parent
_PAGE = _ROOT / "docs" / "architecture.md"

_BEGIN = "<!-- The tree begins: made by docs/make_architecture.py from the docstrings. -->"
_END = "<!-- The tree ends. -->"

_PACKAGES = ("autotune", "tests/benchmarks")
"""Folders shown whole; every file below them has a docstring."""

_SPACES = "search_spaces"

_SENTENCE = re.compile(r"(.+?[.!?])(?=\s|$)", re.DOTALL)


def first_sentence(text: str) -> str:
    """The first sentence of a text on one line; empty for an empty text."""
    paragraph = " ".join(text.strip().partition("\n\n")[0].split())
    found = _SENTENCE.match(paragraph)
    return found[1] if found else paragraph


def file_tree(root: Path = _ROOT) -> str:
    """The tree as Markdown: a heading for each package, a line for each of its files."""
    blocks = [block for name in _PACKAGES for block in _package(root, root / name)]
    return "\n\n".join([*blocks, _spaces(root)])


def _package(root: Path, folder: Path) -> Iterator[str]:
    """The block of a folder, then those of the folders below it, in alphabetical order."""
    init = folder / "__init__.py"
    heading = f"### `{folder.relative_to(root).as_posix()}/`"
    about = [_description(init)] if init.exists() and _description(init) else []
    files = sorted(folder.glob("*.py"))
    lines = [_line(path.name, _description(path)) for path in files if path != init]
    yield "\n\n".join([heading, *about, *(["\n".join(lines)] if lines else [])])
    for below in sorted(path for path in folder.iterdir() if any(path.glob("*.py"))):
        yield from _package(root, below)


def _spaces(root: Path) -> str:
    """The search spaces that come along; the first comment of each file describes it."""
    files = sorted((root / _SPACES).glob("*.yaml"))
    lines = [_line(path.name, first_sentence(_comment(path))) for path in files]
    return "\n\n".join([f"### `{_SPACES}/`", "\n".join(lines)])


def _description(path: Path) -> str:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return first_sentence(ast.get_docstring(tree) or "")


def _comment(path: Path) -> str:
    """The comment at the top of a YAML file, without its marks."""
    lines = path.read_text(encoding="utf-8").splitlines()
    last = next((i for i, line in enumerate(lines) if not line.startswith("#")), len(lines))
    return "\n".join(line.removeprefix("#").strip() for line in lines[:last])


def _line(name: str, description: str) -> str:
    return f"- `{name}`: {description}" if description else f"- `{name}`"


def with_tree(page: str, tree: str) -> str:
    """The page with a tree between its markers.

    Raises:
        ValueError: the page lacks a marker.
    """
    before, begin, rest = page.partition(_BEGIN)
    _, end, after = rest.partition(_END)
    if not begin or not end:
        raise ValueError(f"{_PAGE.name} lacks one of its two markers: {_BEGIN} and {_END}")
    return f"{before}{begin}\n\n{tree}\n\n{end}{after}"


def is_current() -> bool:
    """Whether the page holds the tree of the files as they are."""
    page = _PAGE.read_text(encoding="utf-8")
    return with_tree(page, file_tree()) == page


def main(arguments: list[str]) -> int:
    """Write the tree, or say with `--check` whether it is out of date; the exit status."""
    if "--check" in arguments:
        return 0 if is_current() else 1
    page = _PAGE.read_text(encoding="utf-8")
    _PAGE.write_text(with_tree(page, file_tree()), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
