"""A strategy's optimizer under the user's groups and schedule."""

from __future__ import annotations

import torch
from torch import nn

from autotune.knob_values import Optimizer
from autotune.script.replaced_optimizer import is_kept, kind_of, replace_optimizer
from autotune.space.strategy import Strategy


def model() -> nn.Module:
    return nn.Sequential(nn.Embedding(10, 4), nn.Linear(4, 4))


def groups_of(own: nn.Module) -> list[dict[str, object]]:
    matrices = [p for p in own.parameters() if p.dim() > 1]
    vectors = [p for p in own.parameters() if p.dim() < 2]
    return [
        {"params": matrices, "weight_decay": 0.1, "lr": 1e-3},
        {"params": vectors, "weight_decay": 0.0, "lr": 1e-4},
    ]


def test_a_json_optimizer_gets_the_users_groups() -> None:
    own = model()
    theirs = torch.optim.AdamW(groups_of(own))
    optimizer, plain, _ = replace_optimizer(own, Strategy(), theirs.param_groups)
    assert optimizer is None
    assert [(g["lr"], g["weight_decay"]) for g in plain] == [(1e-3, 0.1), (1e-4, 0.0)]


def test_a_schedule_reaches_the_optimizer_that_trains() -> None:
    own = model()
    theirs = torch.optim.AdamW(groups_of(own))
    schedule = torch.optim.lr_scheduler.LambdaLR(theirs, lambda step: 1 / (1 + step))
    strategy = Strategy(optimizer=Optimizer.ADAFACTOR, zero_stage=0)
    optimizer, _, carried = replace_optimizer(own, strategy, theirs.param_groups)
    ours = optimizer.param_groups if optimizer is not None else [dict(g) for g in groups_of(own)]
    theirs.step()
    schedule.step()
    carried.carry_over(ours)
    assert [group["lr"] for group in ours] == [5e-4, 5e-5]
    assert [group["weight_decay"] for group in ours] == [0.1, 0.0]


def test_a_schedule_over_the_optimizer_that_trains_is_left_alone() -> None:
    own = model()
    theirs = torch.optim.AdamW(groups_of(own))
    strategy = Strategy(optimizer=Optimizer.ADAFACTOR, zero_stage=0)
    _, _, carried = replace_optimizer(own, strategy, theirs.param_groups)
    # As a `scheduler` of DeepSpeed's JSON, or one that is given as a function, sets them.
    ours = [dict(group, lr=0.5) for group in groups_of(own)]
    carried.carry_over(ours)
    assert [group["lr"] for group in ours] == [0.5, 0.5]
    theirs.param_groups[1]["lr"] = 0.25
    carried.carry_over(ours)
    assert [group["lr"] for group in ours] == [0.5, 0.25]


def test_an_optimizer_without_a_learning_rate_is_replaced_too() -> None:
    own = model()
    for kind in (Optimizer.ADAMW, Optimizer.ADAFACTOR):
        groups = [{"params": list(own.parameters()), "lr": None}]
        made, plain, carried = replace_optimizer(own, Strategy(optimizer=kind), groups)
        ours = plain if made is None else made.param_groups
        carried.carry_over(ours)
        assert all(group.get("lr", 1e-5) is not None for group in ours)


def test_bitsandbytes_is_told_apart_by_its_arguments() -> None:
    from bitsandbytes import optim

    members = [nn.Parameter(torch.zeros(2))]
    assert kind_of(optim.AdamW(members, optim_bits=8)) is Optimizer.ADAMW_8BIT
    assert kind_of(optim.AdamW(members, optim_bits=8, is_paged=True)) is (
        Optimizer.PAGED_ADAMW_8BIT
    )
    assert kind_of(optim.AdamW8bit(members)) is Optimizer.ADAMW_8BIT
    assert kind_of(optim.PagedAdamW8bit(members)) is Optimizer.PAGED_ADAMW_8BIT
    assert kind_of(optim.AdamW(members)) is Optimizer.ADAMW


def test_the_same_optimizer_is_kept() -> None:
    theirs = torch.optim.AdamW(model().parameters())
    assert kind_of(theirs) is Optimizer.ADAMW
    assert kind_of("AdamW") is Optimizer.ADAMW
    assert kind_of(object()) is None
    assert is_kept(Strategy(), theirs, offloaded=False)
    assert not is_kept(Strategy(optimizer=Optimizer.LION), theirs, offloaded=False)
    assert not is_kept(Strategy(), torch.optim.SGD(model().parameters()), offloaded=False)
