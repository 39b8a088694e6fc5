"""The strategies that a search may try: knobs with their values, and when they apply.

Reads `search_spaces/*.yaml`. Does not know samplers: it lists strategies, and turns one choice of
values into a strategy.
"""

from __future__ import annotations

import difflib
import hashlib
import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from autotune.compatibility import conflict, reference_strategy
from autotune.errors import ConfigError
from autotune.hardware import Hardware
from autotune.software import Software
from autotune.strategy import KNOBS, Strategy, read_knob
from autotune.workload import Method, Workload

__all__ = ["FACTS", "Knob", "SearchSpace", "bundled_spaces", "load_search_space"]

Value = int | bool | str

FACTS = ("device", "method")
"""What a condition may ask besides other knobs: `device` is cpu or cuda, `method` the --method."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Knob:
    """One knob of a search space."""

    name: str
    values: tuple[Value, ...]
    """All values that may be tried."""
    when: Mapping[str, tuple[Value, ...]]
    """It is only moved where each named knob or fact has one of these values; else it keeps its
    reference value."""


@dataclass(frozen=True, kw_only=True)
class SearchSpace:
    """The knobs that a search moves, for one question.

    Knobs that a file does not name keep the value of the reference strategy.
    """

    name: str
    """The file's stem."""
    knobs: tuple[Knob, ...]
    workload: Workload
    hardware: Hardware
    software: Software
    text: str = ""
    """The file as read; a study keeps a copy."""

    @cached_property
    def reference(self) -> Strategy:
        """The strategy whose loss-changing knobs all others are compared with."""
        return reference_strategy(self.workload, self.hardware)

    @property
    def digest(self) -> str:
        """Identifies the content of the file."""
        return hashlib.sha256(self.text.encode()).hexdigest()[:16]

    @property
    def choices(self) -> dict[str, tuple[Value, ...]]:
        """Every value of every knob that is moved at all, by knob."""
        return {knob.name: knob.values for knob in self.knobs}

    def strategy(self, choice: Mapping[str, Value]) -> Strategy | None:
        """The strategy that a choice of values stands for; None where it is impossible.

        Knobs whose condition does not hold fall back to the reference, so several choices may
        stand for one strategy.
        """
        values: dict[str, Any] = self.reference.to_dict()
        facts = {"device": str(self.hardware.device_type), "method": str(self.workload.method)}
        for knob in self.knobs:
            seen = values | facts
            if all(seen[name] in allowed for name, allowed in knob.when.items()):
                values[knob.name] = choice[knob.name]
        try:
            strategy = Strategy.from_dict(values)
        except ConfigError:
            return None
        return None if self.conflict(strategy) else strategy

    def conflict(self, strategy: Strategy) -> str | None:
        """Why the question does not allow this strategy, in words."""
        return conflict(strategy, self.workload, self.hardware, self.software)

    def strategies(self) -> Iterator[Strategy]:
        """Every possible strategy, each once."""
        seen: set[Strategy] = set()
        names = [knob.name for knob in self.knobs]
        for values in itertools.product(*(knob.values for knob in self.knobs)):
            strategy = self.strategy(dict(zip(names, values, strict=True)))
            if strategy is not None and strategy not in seen:
                seen.add(strategy)
                yield strategy


def _spaces_folder() -> Path:
    """`search_spaces/` beside the package in a checkout, inside it when installed as a wheel."""
    inside = Path(__file__).parent / "search_spaces"
    return inside if inside.is_dir() else Path(__file__).parent.parent / "search_spaces"


def bundled_spaces() -> dict[str, Path]:
    """The search spaces that come with autotune, by name."""
    return {path.stem: path for path in sorted(_spaces_folder().glob("*.yaml"))}


def load_search_space(
    name: str, workload: Workload, hardware: Hardware, software: Software
) -> SearchSpace:
    """Read a bundled space by its name, or a file by its path.

    Raises:
        ConfigError: no such file, or a mistake in it; the message has file and line.
    """
    bundled = bundled_spaces()
    path = bundled.get(name) or Path(name)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"--space {name}: no such file; the bundled spaces are {', '.join(bundled)}"
            if isinstance(error, FileNotFoundError)
            else f"--space {name}: cannot be read: {error}"
        ) from error
    knobs = _read_knobs(text, str(path))
    wanted = workload.lora_rank if workload.method is not Method.FULL else 0
    knobs = tuple(
        Knob(
            name=knob.name, values=tuple(v for v in knob.values if v) or (wanted,), when=knob.when
        )
        if knob.name == "lora_rank"
        else knob
        for knob in knobs
        if knob.name != "lora_rank" or workload.method is not Method.FULL
    )
    return SearchSpace(
        name=path.stem,
        knobs=knobs,
        workload=workload,
        hardware=hardware,
        software=software,
        text=text,
    )


def _nearest(name: str, known: tuple[str, ...]) -> str:
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"did you mean {near[0]}?" if near else f"known are {', '.join(known)}"


def _read_knobs(text: str, path: str) -> tuple[Knob, ...]:
    """Parse and check the file, naming the line of every mistake."""
    from ruamel.yaml import YAML
    from ruamel.yaml.error import MarkedYAMLError, YAMLError

    try:
        # The round-trip loader is a safe loader of YAML 1.2 that knows each key's line.
        document = YAML(typ="rt").load(text)
    except MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise ConfigError(f"{path}:{line}: not valid YAML: {error.problem}") from error
    except YAMLError as error:
        raise ConfigError(f"{path}: not valid YAML: {error}") from error
    if not isinstance(document, dict) or "knobs" not in document:
        raise ConfigError(f"{path}:1: a search space has a mapping `knobs:` at its top")
    for key in document:
        if key not in ("question", "knobs"):
            line = document.lc.key(key)[0] + 1
            raise ConfigError(
                f"{path}:{line}: unknown key {key!r}; {_nearest(str(key), ('question', 'knobs'))}"
            )
    entries = document["knobs"]
    if not isinstance(entries, dict) or not entries:
        raise ConfigError(f"{path}:{document.lc.key('knobs')[0] + 1}: `knobs:` names no knob")
    knobs = [_read_knob_entry(name, entries, path) for name in entries]
    # In the order of the strategy's knobs, so that conditions look at what is already decided.
    return tuple(sorted(knobs, key=lambda knob: KNOBS.index(knob.name)))


def _read_knob_entry(name: Any, entries: Any, path: str) -> Knob:
    line = entries.lc.key(name)[0] + 1
    if name not in KNOBS:
        raise ConfigError(
            f"{path}:{line}: there is no knob {name!r}; {_nearest(str(name), KNOBS)}"
        )
    entry = entries[name]
    if isinstance(entry, list):
        entry = {"values": entry}
    if not isinstance(entry, dict) or "values" not in entry:
        raise ConfigError(f"{path}:{line}: {name} needs `values: [...]`")
    for key in entry:
        if key not in ("values", "when"):
            raise ConfigError(
                f"{path}:{line}: {name}: unknown key {key!r}; {_nearest(str(key), ('values', 'when'))}"
            )
    values = _read_values(name, entry["values"], f"{path}:{line}")
    when: dict[str, tuple[Value, ...]] = {}
    for other, allowed in (entry.get("when") or {}).items():
        if other in FACTS:
            allowed = allowed if isinstance(allowed, list) else [allowed]
            when[other] = tuple(str(value) for value in allowed)
        elif other in KNOBS and KNOBS.index(other) < KNOBS.index(name):
            when[other] = _read_values(other, allowed, f"{path}:{line}")
        else:
            known = KNOBS[: KNOBS.index(name)] + FACTS
            raise ConfigError(
                f"{path}:{line}: {name}: `when` cannot ask for {other!r}; {_nearest(str(other), known)}"
            )
    return Knob(name=name, values=values, when=when)


def _read_values(name: str, values: Any, where: str) -> tuple[Value, ...]:
    values = values if isinstance(values, list) else [values]
    if not values:
        raise ConfigError(f"{where}: {name} has no values")
    try:
        read = [read_knob(name, value) for value in values]
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from error
    return tuple(dict.fromkeys(str(v) if isinstance(v, str) else v for v in read))
