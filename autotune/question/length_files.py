"""Reads sample lengths from a file of the user's, or counts them in a data set by its tokenizer.

Local files only; nothing of them is run. Does not know what the lengths are for.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from autotune.errors import ConfigError
from autotune.names import visible
from autotune.question.lengths import Lengths
from autotune.text_file import parse_json
from autotune.yaml_file import Section, parse_yaml, read_text

__all__ = ["read_data", "read_lengths"]

_MOST_BYTES = 64 * 2**20
"""Of a file of lengths: ten million lines."""

_MOST_DATA_BYTES = 2**30
_AT_ONCE = 512
"""Samples that are tokenised together."""

_Count = Annotated[int, Field(ge=1, le=2**53, strict=True)]
_Tokens = Annotated[int, Field(ge=1, le=2**27, strict=True)]


class _Histogram(Section):
    lengths: Annotated[dict[_Tokens, _Count], Field(min_length=1)]


def read_lengths(path: Path) -> Lengths:
    """The lengths in a file: one a line, JSON lines, or (`.yaml`, `.yml`) a histogram.

    A line of JSON is a number, or an object with `length` or with the list `input_ids`. The YAML
    has one key, `lengths`, with the number of samples by their tokens.

    Raises:
        ConfigError: no such file, or a mistake in it; the message has file and line.
    """
    name = f"--lengths {path}"
    if path.suffix in (".yaml", ".yml"):
        text = read_text(path, name, if_missing="; give one length a line, or a histogram")
        return _lengths_of(parse_yaml(text, name, _Histogram).lengths, name)
    lines = _lines(read_text(path, name, most_bytes=_MOST_BYTES))
    return _lengths_of((_length(line, f"{name}:{number}") for number, line in lines), name)


def read_data(path: Path, tokenizer: Path) -> Lengths:
    """The lengths of a data set's samples, counted by a tokenizer.

    Each line is a JSON object with `text`, with `messages`, or with `prompt` and `completion`.

    Args:
        path: of the data.
        tokenizer: a folder with a tokenizer of transformers.

    Raises:
        ConfigError: a file that cannot be read or is none of these; the message names its flag.
    """
    name = f"--data {path}"
    lines = _lines(read_text(path, name, most_bytes=_MOST_DATA_BYTES))
    samples = [(f"{name}:{number}", _object(line, f"{name}:{number}")) for number, line in lines]
    return _lengths_of(_tokenised(samples, _load_tokenizer(tokenizer)), name)


def _lines(text: str) -> Iterator[tuple[int, str]]:
    """Each line that says something, with its number."""
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip():
            yield number, line.strip()


def _lengths_of(lengths: Any, name: str) -> Lengths:
    try:
        return Lengths.of(lengths)
    except ConfigError as error:
        reason = str(error)
        if reason.startswith("--"):
            raise
        raise ConfigError(f"{name}: {reason}") from error


def _length(line: str, where: str) -> int:
    is_number = line.isascii() and line.isdigit() and len(line) < 12
    value = int(line) if is_number else _json(line, where)
    if isinstance(value, dict):
        value = value["length"] if "length" in value else value.get("input_ids")
        value = len(value) if isinstance(value, list) else value
    if type(value) is not int or not 1 <= value <= 2**27:
        raise ConfigError(
            f"{where}: a length is a whole number from 1 to {2**27:,}, or JSON with length or "
            f"input_ids; got {visible(line[:40])}"
        )
    return value


def _json(line: str, where: str) -> Any:
    try:
        return parse_json(line)
    except (ValueError, RecursionError) as error:
        raise ConfigError(
            f"{where}: neither a whole number nor JSON: {visible(line[:40])}"
        ) from error


def _object(line: str, where: str) -> dict[str, Any]:
    try:
        value = parse_json(line)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{where}: not JSON: {visible(line[:40])}") from error
    if not isinstance(value, dict):
        raise ConfigError(f"{where}: each line is a JSON object with text or messages")
    return value


def _load_tokenizer(folder: Path) -> Any:
    if not folder.is_dir():
        raise ConfigError(f"--tokenizer {folder}: no such folder; give one with tokenizer.json")
    from transformers import AutoTokenizer
    from transformers.utils import logging

    logging.set_verbosity_error()
    try:
        return AutoTokenizer.from_pretrained(
            str(folder), local_files_only=True, trust_remote_code=False
        )
    except Exception as error:  # of many kinds, of whatever the folder holds
        reason = visible(str(error).strip().partition("\n")[0][:200])
        raise ConfigError(f"--tokenizer {folder}: cannot be read: {reason}") from error


def _tokenised(samples: list[tuple[str, dict[str, Any]]], tokenizer: Any) -> Iterable[int]:
    """The tokens of each sample."""
    texts: list[str] = []
    for where, sample in samples:
        if isinstance(sample.get("messages"), list):
            yield _conversation(sample["messages"], where, tokenizer)
            continue
        texts.append(_text(sample, where))
        if len(texts) == _AT_ONCE:
            yield from map(len, tokenizer(texts)["input_ids"])
            texts = []
    if texts:
        yield from map(len, tokenizer(texts)["input_ids"])


def _text(sample: dict[str, Any], where: str) -> str:
    text = sample.get("text")
    if text is None and {"prompt", "completion"} <= sample.keys():
        parts = (sample["prompt"], sample["completion"])
        text = "".join(parts) if all(isinstance(part, str) for part in parts) else None
    if not isinstance(text, str):
        raise ConfigError(
            f"{where}: a sample has text, messages, or prompt and completion; it has "
            f"{visible(json.dumps(list(sample)[:8]))}"
        )
    return text


def _conversation(messages: list[Any], where: str, tokenizer: Any) -> int:
    try:
        found = tokenizer.apply_chat_template(messages, tokenize=True, return_dict=True)
    except Exception as error:  # of the template, which is the user's
        reason = visible(str(error).strip().partition("\n")[0][:200])
        raise ConfigError(f"{where}: the chat template cannot render it: {reason}") from error
    return len(found["input_ids"])
