"""A preset, a folder with config.json or a Hugging Face id, read into a model's shape.

A preset is read without transformers. All else passes the same border: the file, the
architecture, transformers' own reading, and the model itself, built without memory.
"""

from __future__ import annotations

import contextlib
import difflib
import logging
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from autotune.errors import ConfigError
from autotune.question.architecture import check_architecture
from autotune.question.census import Census, take_census
from autotune.question.config_file import read_config_file, shorten
from autotune.question.empty_model import build_empty_model, run_first_layers
from autotune.question.language_part import count_beside, has_language_part, language_fields
from autotune.question.model_config import complete_fields, refusal
from autotune.question.model_shape import ModelShape
from autotune.question.presets import PRESETS
from autotune.uncollected import uncollected

__all__ = ["Vision", "load_model_shape"]

_WIDTHS = ("intermediate_size", "ffn_dim", "n_inner")
_NUM_EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")
"""Names of the MLP's width and of the number of experts, which differ between architectures."""

_BLAME_S = 5.0
"""Seconds that may go into finding the field to blame."""

_Count = Annotated[int, Field(ge=1)]


class Vision(StrEnum):
    """What becomes of the vision tower of a vision-language model."""

    FROZEN = "frozen"
    """Its weights are held and not trained."""
    TRAINED = "trained"
    """Its weights are trained with all others."""
    ABSENT = "absent"
    """The language part is trained as a model of its own."""


class _Sizes(BaseModel):
    """The numbers that every decoder has."""

    model_config = ConfigDict(strict=True, frozen=True, extra="ignore")

    hidden_size: _Count
    num_hidden_layers: _Count
    num_attention_heads: _Count
    vocab_size: _Count
    num_key_value_heads: _Count | None = None
    head_dim: _Count | None = None
    max_position_embeddings: _Count | None = None
    word_embed_proj_dim: _Count | None = None


def load_model_shape(
    name: str, *, trust_remote_code: bool = False, vision: Vision = Vision.FROZEN
) -> ModelShape:
    """Read a preset, a local folder with config.json, or a Hugging Face id, in this order.

    Args:
        name: what the user gave to --model.
        trust_remote_code: allow the model's own Python code to run.
        vision: what becomes of a vision tower; without meaning for other models.

    Raises:
        ConfigError: there is no such model, it has no decoder-only causal language model, or its
            configuration cannot be read or built; one line that names the file and the field.
    """
    if name in PRESETS:
        return _shape_of(name, PRESETS[name].config, f"--model {name}")
    label = f"--model {name}: config.json"
    with uncollected(), _quiet_libraries():
        fields = read_config_file(_config_path(name), label)
        if trust_remote_code and "auto_map" in fields:
            return _shape_of(name, _remote_fields(name, label), label, source=name)
        fields.pop("auto_map", None)
        check_architecture(fields, label)
        record = complete_fields(fields, label)
        if has_language_part(str(record["model_type"])):
            return _language_shape(name, record, fields, label, vision)
        shape = _shape_of(name, record, label)
        census = _census_of(record, fields, label)
    return replace(shape, census=census)


def _language_shape(
    name: str, whole: Mapping[str, Any], fields: Mapping[str, Any], label: str, vision: Vision
) -> ModelShape:
    """The shape of the language part of a vision-language model."""
    of_text = f"{label}: text_config"
    record = language_fields(whole, of_text)
    shape = replace(
        _shape_of(name, record, of_text),
        census=_census_of(record, record, of_text),
        whole_type=str(whole["model_type"]),
    )
    num_beside = count_beside(whole, fields, shape.num_parameters, label)
    if vision is Vision.ABSENT:
        return shape
    is_trained = vision is Vision.TRAINED
    return replace(shape, tower_parameters=num_beside, trains_tower=is_trained)


def _config_path(name: str) -> Path:
    """The model's config.json: in its folder, or in the cache of Hugging Face's downloads."""
    folder = Path(name)
    if _is_folder(folder):
        path = folder / "config.json"
        # `exists` of a FIFO or a directory too: what it is, is said by who reads it.
        if not path.exists():
            raise ConfigError(f"--model {name}: the folder has no config.json")
        return path
    if name.count("/") != 1 or name.startswith((".", "/", "~")):
        near = difflib.get_close_matches(name, PRESETS, n=1, cutoff=0.4)
        hint = f"did you mean {near[0]}? " if near else ""
        raise ConfigError(
            f"--model {name}: no such preset or folder. {hint}Give a preset "
            f"({', '.join(PRESETS)}), a folder with config.json, or a Hugging Face id (org/name)"
        )
    return _downloaded(name)


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except (OSError, ValueError):
        return False


def _downloaded(name: str) -> Path:
    from transformers.utils.hub import cached_file

    try:
        path = cached_file(name, "config.json")
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ConfigError(f"--model {name}: its config.json cannot be loaded: {reason}") from error
    assert path is not None, "it raises where there is no such file"
    return Path(path)


@contextlib.contextmanager
def _quiet_libraries() -> Iterator[None]:
    """Keep back what they log of attempts to connect, and of what is refused anyway."""
    import transformers

    hub = logging.getLogger("huggingface_hub")
    level, verbosity = hub.level, transformers.logging.get_verbosity()
    hub.setLevel(logging.CRITICAL)
    transformers.logging.set_verbosity(logging.CRITICAL)
    try:
        yield
    finally:
        hub.setLevel(level)
        transformers.logging.set_verbosity(verbosity)


def _remote_fields(name: str, label: str) -> dict[str, Any]:
    """The configuration of a model whose own code reads it."""
    import json

    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(name, trust_remote_code=True)
        record: dict[str, Any] = json.loads(config.to_json_string(use_diff=False))
        for common in ("max_position_embeddings", *_Sizes.model_fields):
            record.setdefault(common, getattr(config, common, None))
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ConfigError(f"{label}: the model's own code cannot read it: {reason}") from error
    return record


def _census_of(record: Mapping[str, Any], fields: Mapping[str, Any], label: str) -> Census:
    """Build and run the model without memory, and count it."""
    deadlines: list[float] = []

    def attempt(changed: Mapping[str, Any]) -> None:
        deadlines.append(time.monotonic() + _BLAME_S)
        if time.monotonic() > deadlines[0]:
            raise TimeoutError
        model = build_empty_model(other := complete_fields(changed, label))
        run_first_layers(model, int(other["num_hidden_layers"]))

    num_layers = int(record["num_hidden_layers"])
    try:
        model = build_empty_model(record)
        census = take_census(model, num_layers)
        run_first_layers(model, num_layers)
    except LookupError as error:
        if type(error) is not LookupError:
            raise refusal(label, "this model cannot be built", error, fields, attempt) from error
        raise ConfigError(
            f"{label}: autotune cannot count a model of model_type {record['model_type']}: {error}"
        ) from error
    except Exception as error:
        # Code of some hundred architectures runs here; whatever it raises is about this file.
        raise refusal(label, "this model cannot be built", error, fields, attempt) from error
    return census


def _shape_of(
    name: str, config: Mapping[str, Any], label: str, *, source: str | None = None
) -> ModelShape:
    """Take the numbers out of a configuration."""
    sizes = _sizes_of(config, label)
    hidden, heads = sizes.hidden_size, sizes.num_attention_heads
    kv_heads = sizes.num_key_value_heads or heads
    if heads % kv_heads:
        raise ConfigError(
            f"{label}: num_key_value_heads {kv_heads} does not divide num_attention_heads {heads}"
        )
    num_experts = _number(config, _NUM_EXPERTS, label)
    widths = ("moe_intermediate_size", *_WIDTHS) if num_experts else _WIDTHS
    return ModelShape(
        name=name,
        model_type=str(config["model_type"]),
        hidden_size=hidden,
        intermediate_size=_number(config, widths, label) or 4 * hidden,
        num_hidden_layers=sizes.num_hidden_layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=sizes.head_dim or max(1, hidden // heads),
        vocab_size=sizes.vocab_size,
        max_position_embeddings=sizes.max_position_embeddings or 2**31,
        tie_word_embeddings=bool(config.get("tie_word_embeddings", False)),
        embedding_size=sizes.word_embed_proj_dim or hidden,
        num_experts=num_experts or 1,
        config=dict(config),
        source=source,
    )


def _sizes_of(config: Mapping[str, Any], label: str) -> _Sizes:
    if config.get("num_attention_heads") is None:
        raise ConfigError(
            f"{label}: model_type {config.get('model_type')} has no num_attention_heads; autotune "
            "supports only decoders with attention, not state-space or recurrent models"
        )
    try:
        return _Sizes.model_validate(dict(config))
    except ValidationError as error:
        mistake = error.errors()[0]
        field, rule = mistake["loc"][0], mistake["msg"]
        raise ConfigError(
            f"{label}: {field}: {rule[0].lower()}{rule[1:]}, got {shorten(mistake['input'])}"
        ) from error


def _number(config: Mapping[str, Any], names: tuple[str, ...], label: str) -> int | None:
    """The first number that is given, and not zero, under these names; of a list the mean."""
    name = next((name for name in names if config.get(name)), None)
    if name is None:
        return None
    value = config[name]
    values = value if isinstance(value, list) else [value]
    if not all(isinstance(each, int) and each > 0 for each in values):
        raise ConfigError(f"{label}: {name} must be a number above 0, got {shorten(value)}")
    return sum(values) // len(values)
