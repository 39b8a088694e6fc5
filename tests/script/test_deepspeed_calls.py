"""What reaches DeepSpeed when a program calls it, by an engine that only remembers."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import deepspeed
import pytest
import torch
from deepspeed.runtime.zero.partition_parameters import Init
from torch import nn

from autotune.knob_values import Optimizer
from autotune.script.deepspeed_calls import DeepSpeedCalls
from autotune.script.steering import Steering
from autotune.space.strategy import Strategy

THEIRS: dict[str, Any] = {"train_batch_size": 2, "wandb": {"enabled": True}}
OURS: dict[str, Any] = {
    "train_batch_size": 4,
    "zero_optimization": {"stage": 1},
    "optimizer": {"type": "AdamW", "params": {"lr": 1e-5}},
}


class Engines(list[SimpleNamespace]):
    """DeepSpeed's place, and the watcher: remembers what was made."""

    def __init__(self) -> None:
        super().__init__()
        self.trained: list[Any] = []

    def engine_made(self, engine: Any, call: Any) -> None:
        self.trained.append(engine)


@pytest.fixture
def engines(monkeypatch: pytest.MonkeyPatch) -> Engines:
    made = Engines()

    def initialize(
        args: Any = None,
        model: Any = None,
        optimizer: Any = None,
        model_parameters: Any = None,
        lr_scheduler: Any = None,
        config: Any = None,
        config_params: Any = None,
    ) -> tuple[Any, ...]:
        engine = SimpleNamespace(
            module=model, args=args, config=config, made=optimizer, members=model_parameters
        )
        engine.step = lambda: None
        engine.save_checkpoint = lambda folder: pytest.fail("it saves")
        made.append(engine)
        return engine, optimizer, None, lr_scheduler

    monkeypatch.setattr(deepspeed, "initialize", initialize)
    monkeypatch.setattr(Init, "__init__", Init.__init__)
    return made


def steered(engines: Engines, strategy: Strategy | None = None) -> list[str]:
    """Put the stand-in in; what it says goes to the list."""
    said: list[str] = []
    steering = Steering(
        strategy=strategy,
        config=OURS,
        knows_layers=False,
        output_folder="out",
        on_change=said.append,
    )
    DeepSpeedCalls(steering, engines).install()
    return said


def test_no_engine_of_a_trial_writes_or_uploads(engines: Engines) -> None:
    steered(engines)
    first, second, frozen = nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 2).requires_grad_(False)
    first.save_pretrained = lambda folder: pytest.fail("it saves")  # type: ignore[assignment]
    for model in (first, second, frozen):
        members = list(model.parameters())
        engine, *_ = deepspeed.initialize(model=model, model_parameters=members, config=THEIRS)
        assert engine.config["wandb"] == {"enabled": False}
        engine.save_checkpoint("mine")
    first.save_pretrained("mine")
    assert len(engines.trained) == 1


def test_the_programs_own_arguments_stay_as_they_are(engines: Engines, tmp_path: Any) -> None:
    steered(engines, Strategy())
    (tmp_path / "ds.json").write_text('{"train_batch_size": 2, "gradient_clipping": 0.5}')
    args = SimpleNamespace(deepspeed_config=str(tmp_path / "ds.json"), local_rank=0)
    model = nn.Linear(2, 2)
    deepspeed.initialize(args=args, model=model, model_parameters=model.parameters())
    assert args.deepspeed_config == str(tmp_path / "ds.json")
    assert engines[0].args.deepspeed_config is None
    assert engines[0].config["gradient_clipping"] == 0.5
    assert engines[0].config["train_batch_size"] == 4
    assert [len(group["params"]) for group in engines[0].members] == [2]


def test_an_optimizer_may_be_a_function_of_the_parameter_groups(engines: Engines) -> None:
    said = steered(engines, Strategy())
    model = nn.Linear(2, 2)
    groups = ({"params": [each], "lr": 0.1 * each.dim()} for each in model.parameters())
    deepspeed.initialize(
        model=model, optimizer=torch.optim.AdamW, model_parameters=groups, config=THEIRS
    )
    assert [group["lr"] for group in engines[0].made.param_groups] == [0.2, 0.1]
    assert said == []


def test_an_optimizer_of_another_kind_is_said(engines: Engines) -> None:
    said = steered(engines, Strategy(optimizer=Optimizer.ADAMW))
    model = nn.Linear(2, 2)
    own = torch.optim.RMSprop(model.parameters(), lr=0.1)
    deepspeed.initialize(model=model, optimizer=own, config=THEIRS)
    assert said == ["adamw trains in the place of RMSprop"]
    assert engines[0].made is None
    assert engines[0].config["optimizer"]["params"] == {"lr": 0.1, "weight_decay": 0}


def test_an_adam_that_was_made_of_adafactor_gets_one_epsilon(engines: Engines) -> None:
    steered(engines, Strategy())
    model = nn.Linear(2, 2)
    own = torch.optim.AdamW(model.parameters())
    own.param_groups[0]["eps"] = (1e-30, 1e-3)
    deepspeed.initialize(model=model, optimizer=own, config=THEIRS)
    assert engines[0].made.param_groups[0]["eps"] == 1e-8


def test_what_means_nothing_to_the_optimizer_is_left_out(engines: Engines) -> None:
    steered(engines, Strategy())
    model = nn.Linear(2, 2)
    # Its `eps` are two numbers.
    own = torch.optim.Adafactor(model.parameters(), lr=0.1)
    deepspeed.initialize(model=model, optimizer=own, config=THEIRS)
    assert "eps" not in engines[0].members[0]
    assert "eps" not in engines[0].config["optimizer"]["params"]
