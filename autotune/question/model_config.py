"""A model's configuration, as transformers reads it, and as the values that a study keeps.

Whatever transformers finds wrong ends in one line that names the field. Knows no architecture.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from itertools import chain, combinations
from typing import Any

from autotune.errors import ConfigError

__all__ = ["complete_fields", "refusal", "transformers_config"]

_COMMON = (
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "vocab_size",
    "max_position_embeddings",
)
"""What some architectures keep under names of their own."""

_TOKEN_IDS = ("pad_token_id", "bos_token_id", "eos_token_id")

_LONGEST_REASON = 300

_NOISE = re.compile(r"((Class v|V)alidation error for (field|validator) '\w+'|\b\w+Error): ")
"""What stands before the reason in the errors of transformers' configurations."""


def complete_fields(fields: Mapping[str, Any], label: str) -> dict[str, Any]:
    """Everything that the configuration says, with its architecture's defaults, as JSON values.

    Args:
        fields: of a config.json whose architecture is known.
        label: what messages call the file.

    Raises:
        ConfigError: transformers cannot read it, or its sizes differ between layers.
    """
    try:
        config = _read(fields)
    except Exception as error:
        # Code of some hundred architectures runs here; whatever it raises is about this file.
        raise refusal(label, "transformers cannot read it", error, fields, _read) from error
    record: dict[str, Any] = json.loads(config.to_json_string(use_diff=False))
    for name in _COMMON:
        try:
            record.setdefault(name, getattr(config, name, None))
        except Exception as error:
            raise ConfigError(
                f"{label}: {name} differs between its layers, which autotune cannot count"
            ) from error
    return record


def transformers_config(record: Mapping[str, Any]) -> Any:
    """The object of transformers that stands for the values of `complete_fields`."""
    from transformers import AutoConfig

    fields = {key: _with_endless(value) for key, value in record.items() if key != "model_type"}
    return AutoConfig.for_model(record["model_type"], **fields)


def refusal(
    label: str,
    what: str,
    error: Exception,
    fields: Mapping[str, Any],
    attempt: Callable[[Mapping[str, Any]], object],
) -> ConfigError:
    """What to raise where a configuration cannot be used: the field to blame, and why.

    Args:
        label: what messages call the file.
        what: what could not be done with it.
        error: what was raised.
        fields: what the file says.
        attempt: what could not be done, to be tried with other fields.
    """
    text = " ".join(str(error).split())
    named = re.search(r"[Ff]ield '(\w+)'", text)
    field = named[1] if named else _culprit(fields, attempt, is_lacking="None" in text)
    reason = _NOISE.sub("", text)[:_LONGEST_REASON] or type(error).__name__
    words = f"{field}: " if field else "its fields contradict each other: "
    if field == "pad_token_id":
        words += "set it to null, or to the number of a token of the vocabulary; "
    return ConfigError(f"{label}: {words}{what}: {_printable(reason)}")


def _read(fields: Mapping[str, Any]) -> Any:
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    known = {key: _with_endless(value) for key, value in fields.items() if key != "auto_map"}
    return CONFIG_MAPPING[fields["model_type"]].from_dict(known)


def _culprit(
    fields: Mapping[str, Any], attempt: Callable[[Mapping[str, Any]], object], *, is_lacking: bool
) -> str | None:
    """The first field without which the attempt succeeds, or the first two numbers.

    Where a value is lacking, the first with which it succeeds, of those that are not there.
    """
    names = [name for name in fields if name not in ("model_type", *_TOKEN_IDS)]
    numbers = [name for name in names if type(fields[name]) is int]
    suspects = chain(
        ((f"{name} (missing)", {**fields, name: 1}) for name in _missing(fields) if is_lacking),
        ((name, {**fields, name: None}) for name in _TOKEN_IDS),
        ((name, _without(fields, name)) for name in names),
        ((" and ".join(pair), _without(fields, *pair)) for pair in combinations(numbers, 2)),
    )
    for words, changed in suspects:
        try:
            attempt(changed)
        except Exception:
            continue
        return words
    return None


def _without(fields: Mapping[str, Any], *names: str) -> dict[str, Any]:
    """The fields with some left to the architecture's defaults."""
    return {key: value for key, value in fields.items() if key not in names}


def _missing(fields: Mapping[str, Any]) -> Iterator[str]:
    """Fields that neither they nor the architecture's defaults give a value."""
    try:
        whole = _read(fields).to_dict()
    except Exception:
        return
    for name, value in whole.items():
        if value is None and fields.get(name) is None:
            yield name


def _with_endless(value: Any) -> Any:
    """Undo the form in which transformers writes numbers that JSON does not have."""
    if isinstance(value, Mapping):
        if set(value) == {"__float__"}:
            return float(value["__float__"])
        return {key: _with_endless(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_with_endless(inner) for inner in value]
    return value


def _printable(text: str) -> str:
    """Text of a library about a file of the user's, safe on a terminal."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)
