"""Reads the files of `search_spaces/` and makes the search space of a question.

Does not know strategies beyond the names of their knobs and the values that these take.
"""

from __future__ import annotations

from functools import cache, lru_cache
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, create_model, model_validator

from autotune.machine.hardware import DeviceType, Hardware
from autotune.machine.software import Software
from autotune.question.own_training import OwnTraining
from autotune.question.workload import Method, Workload
from autotune.space.own_training import held_knobs
from autotune.space.search_space import FACTS, Knob, SearchSpace, Value
from autotune.space.strategy import KNOBS
from autotune.space.strategy_file import knob_type
from autotune.yaml_file import Section, nearest, parse_yaml, read_text

__all__ = ["bundled_spaces", "load_search_space", "parse_search_space"]

_FACT_TYPES: dict[str, type] = {"device": DeviceType, "method": Method}
assert tuple(_FACT_TYPES) == FACTS


def _listed(value: object) -> object:
    """A lone value stands for a list of one."""
    return value if isinstance(value, list) else [value]


def _values_of(kind: Any) -> Any:
    return Annotated[list[kind], BeforeValidator(_listed), Field(min_length=1)]


class _When(Section):
    unknown_key = "`when` cannot ask for"


class _Entry(Section):
    """What a file says of one knob."""

    values: list[Any]
    when: _When = _When()

    @model_validator(mode="before")
    @classmethod
    def _expand_short_form(cls, entry: object) -> object:
        return {"values": entry} if isinstance(entry, list) else entry


class _Knobs(Section):
    unknown_key = "there is no knob"

    @model_validator(mode="after")
    def _name_one(self) -> _Knobs:
        if not self.model_fields_set:
            raise ValueError("`knobs:` names no knob")
        return self


class _Document(Section):
    question: str = ""
    knobs: _Knobs


def _entry_model(name: str) -> type[_Entry]:
    """An entry whose values are the knob's, and which asks only for what is decided before it."""
    kinds = {other: knob_type(other) for other in KNOBS[: KNOBS.index(name)]} | _FACT_TYPES
    asks: dict[str, Any] = {other: (_values_of(kind), None) for other, kind in kinds.items()}
    when = create_model("When", __base__=_When, **asks)
    return create_model(
        "Entry", __base__=_Entry, values=(_values_of(knob_type(name)), ...), when=(when, when())
    )


@cache
def _space_document() -> type[_Document]:
    """The model of a whole file; made when the first is read, since it takes a quarter second."""
    entries: dict[str, Any] = {name: (_entry_model(name), None) for name in KNOBS}
    knobs = create_model("Knobs", __base__=_Knobs, **entries)
    return create_model("SpaceDocument", __base__=_Document, knobs=(knobs, ...))


@lru_cache(maxsize=16)
def _document(text: str, path: str) -> _Document:
    """What a text says. Where nothing fits, the same spaces are asked of many questions."""
    return parse_yaml(text, path, _space_document())


def bundled_spaces() -> dict[str, Path]:
    """The search spaces that come with autotune, by name."""
    # Beside the package in a checkout, inside it when installed as a wheel.
    package = Path(__file__).parents[1]
    inside = package / "search_spaces"
    folder = inside if inside.is_dir() else package.parent / "search_spaces"
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def load_search_space(
    name: str,
    workload: Workload,
    hardware: Hardware,
    software: Software,
    own: OwnTraining | None = None,
) -> SearchSpace:
    """Read a bundled space by its name, or a file by its path.

    Args:
        name: a bundled space's, or a path.
        workload: what is trained.
        hardware: what it runs on.
        software: what is installed.
        own: the user's own training, which holds some knobs fixed.

    Raises:
        ConfigError: no such file, or a mistake in it; the message has file and line.
    """
    bundled = bundled_spaces()
    path = bundled.get(name) or Path(name)
    text = read_text(
        path,
        f"--space {name}",
        if_missing=f", nor a bundled space; {nearest(name, bundled)}",
    )
    return parse_search_space(text, str(path), workload, hardware, software, own)


def parse_search_space(
    text: str,
    path: str,
    workload: Workload,
    hardware: Hardware,
    software: Software,
    own: OwnTraining | None = None,
) -> SearchSpace:
    """Read the text of a search space, from wherever it was kept.

    Args:
        text: the YAML.
        path: what messages name; its stem names the space.
        workload: what is trained.
        hardware: what it runs on.
        software: what is installed.
        own: the user's own training, which holds some knobs fixed.

    Raises:
        ConfigError: there is a mistake in it; the message has path and line.
    """
    held = frozenset[str]() if own is None else held_knobs(own)
    document = _document(text, path)
    return SearchSpace(
        name=Path(path).stem,
        knobs=tuple(k for k in _knobs(document.knobs, workload) if k.name not in held),
        workload=workload,
        hardware=hardware,
        software=software,
        text=text,
        own={} if own is None else own.knobs,
    )


def _knobs(section: _Knobs, workload: Workload) -> tuple[Knob, ...]:
    """The knobs in the strategy's order, so that conditions look at what is already decided."""
    knobs = []
    for name in KNOBS:
        entry: _Entry | None = getattr(section, name)
        if entry is None:
            continue
        values = _plain(entry.values)
        if name.startswith("lora_") and workload.method is Method.FULL:
            continue
        if name == "experts_implementation" and not workload.model.expert_parameters:
            continue
        if name == "batching" and workload.lengths is None:
            continue
        if name == "lora_rank":
            values = tuple(rank for rank in values if rank) or (workload.lora_rank,)
        asked = ((other, getattr(entry.when, other, None)) for other in KNOBS + FACTS)
        when = {other: _plain(allowed) for other, allowed in asked if allowed}
        knobs.append(Knob(name=name, values=values, when=when))
    return tuple(knobs)


def _plain(values: list[Any]) -> tuple[Value, ...]:
    """Each value once, members of enumerations as their text."""
    return tuple(dict.fromkeys(str(v) if isinstance(v, str) else v for v in values))
