"""`strategy.yaml` of an export: a strategy, with what puts it on a user's own model.

Knows the file's form. Does not know torch, nor DeepSpeed's keys.
"""

from __future__ import annotations

import io
import math
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, Field, PlainValidator, create_model

from autotune.errors import ConfigError
from autotune.names import PlainName, plain_name
from autotune.question.adapter_targets import ALL_LINEAR
from autotune.question.workload import Method, Vision
from autotune.space.deepspeed_config import is_client_optimizer
from autotune.space.knob import MOST
from autotune.space.strategy import FACTS, Strategy, read_knob
from autotune.yaml_file import Section, parse_yaml, read_text

__all__ = ["StrategyFile", "knob_type", "read_strategy_file"]

_HEADER = """\
A training strategy found by autotune. What DeepSpeed's JSON can hold is in ds_config.json; the
rest is put on a model by
  model = autotune.apply(model, "strategy.yaml")
  optimizer = autotune.create_optimizer(model, "strategy.yaml")
Edit both files or neither."""

_COMMENTS = {"method": "full, lora or qlora", "vision": "the vision tower: frozen or trained"} | {
    name: facts.comment for name, facts in FACTS.items()
}


@dataclass(frozen=True, kw_only=True, slots=True)
class StrategyFile:
    """What `strategy.yaml` says."""

    model: str
    """The model that it was found for, as the user named it."""
    seq_len: int
    """Tokens of the longest sample that it was found for."""
    global_batch_size: int
    """Samples of one optimizer step over all ranks."""
    method: Method
    lora_targets: tuple[str, ...]
    learning_rate: float | None
    """Learning rate of an optimizer that is not built from DeepSpeed's JSON; None where DeepSpeed
    builds it, and the JSON alone has the rate."""
    strategy: Strategy
    trains_tower: bool = False
    """Whether the vision tower of a vision-language model is trained; it is frozen otherwise."""

    def to_yaml(self) -> str:
        """As the text of the file, each key with a comment; `read_strategy_file` reads it back."""
        from ruamel.yaml import YAML
        from ruamel.yaml.comments import CommentedMap

        workload = CommentedMap(
            model=self.model,
            seq_len=self.seq_len,
            global_batch_size=self.global_batch_size,
            method=str(self.method),
            lora_targets=list(self.lora_targets),
        )
        if self.trains_tower:
            workload["vision"] = str(Vision.TRAINED)
        strategy = CommentedMap(self.strategy.to_dict())
        for section in (workload, strategy):
            for key in section:
                if key in _COMMENTS:
                    section.yaml_add_eol_comment(_COMMENTS[key], key, column=38)
        document = CommentedMap(workload=workload)
        if self.learning_rate is not None:
            document["learning_rate"] = self.learning_rate
        document["strategy"] = strategy
        document.yaml_set_start_comment(_HEADER)
        for key, comment in (
            ("workload", "\nWhat it was found for."),
            ("learning_rate", "\nOf autotune.create_optimizer; ds_config.json has none."),
            ("strategy", "\nHow it was trained, and which of the two files puts it to work."),
        ):
            if key in document:
                document.yaml_set_comment_before_after_key(key, before=comment)
        yaml = YAML()
        # Flow style would put a comment inside a list; a line is never folded.
        yaml.default_flow_style, yaml.width = False, 4096
        stream = io.StringIO()
        yaml.dump(document, stream)
        return stream.getvalue()


def knob_type(name: str) -> Any:
    """The type of one knob's values, for a pydantic model of a file."""
    return Annotated[Any, PlainValidator(partial(_read_value, name))]


def _read_value(name: str, value: object) -> Any:
    most = FACTS[name].most
    if isinstance(value, int | float) and most < value < math.inf:
        raise ConfigError(f"{name} must be at most {most:,}")
    try:
        read = read_knob(name, value)
    except ConfigError as error:
        if isinstance(value, str) and _is_number(value):
            raise ConfigError(f"{error}, which is text: write it without quotes") from None
        raise
    except (OverflowError, ValueError):
        raise ConfigError(f"{name} takes whole numbers, got another") from None
    return plain_name(read, name) if type(read) is str and read else read


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


class _Workload(Section):
    model: PlainName
    seq_len: int = Field(ge=1, le=MOST)
    global_batch_size: int = Field(ge=1, le=MOST)
    method: Method
    lora_targets: tuple[PlainName, ...] = (ALL_LINEAR,)
    vision: Vision = Vision.FROZEN


class _Knobs(Section):
    unknown_key = "there is no knob"


def _to_strategy(knobs: _Knobs) -> Strategy:
    return Strategy(**dict(knobs))


# A knob that the file leaves out keeps its default, so that files outlive a new knob.
_StrategyKnobs = create_model(
    "Strategy",
    __base__=_Knobs,
    **{knob.name: (knob_type(knob.name), knob.default) for knob in fields(Strategy)},  # type: ignore
)


class _Document(Section):
    workload: _Workload
    learning_rate: float | None = Field(None, gt=0, allow_inf_nan=False)
    strategy: Annotated[Any, AfterValidator(_to_strategy)]


_StrategyDocument = create_model(
    "StrategyDocument",
    __base__=_Document,
    strategy=(Annotated[_StrategyKnobs, AfterValidator(_to_strategy)], ...),
)


def read_strategy_file(path: Path) -> StrategyFile:
    """Read a strategy back.

    Raises:
        ConfigError: no such file, or a mistake in it; the message has file and line.
    """
    text = read_text(path, str(path), if_missing="; `autotune export` writes one")
    document = parse_yaml(text, str(path), _StrategyDocument)
    workload, strategy = document.workload, document.strategy
    if (strategy.lora_rank > 0) != (workload.method is not Method.FULL):
        raise ConfigError(
            f"{path}: lora_rank {strategy.lora_rank} does not go with method {workload.method}"
        )
    if document.learning_rate is None and is_client_optimizer(strategy):
        raise ConfigError(
            f"{path}: learning_rate is missing, and {strategy.optimizer} takes it from here: "
            "add a line such as learning_rate: 1.0e-5"
        )
    return StrategyFile(
        model=workload.model,
        seq_len=workload.seq_len,
        global_batch_size=workload.global_batch_size,
        method=workload.method,
        lora_targets=workload.lora_targets,
        learning_rate=document.learning_rate,
        strategy=strategy,
        trains_tower=workload.vision is Vision.TRAINED,
    )
