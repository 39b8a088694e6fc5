"""The optimizer of a strategy in the place of the user's, with the user's settings and schedule.

A schedule goes on writing learning rates into the optimizer that the user made; they are carried
over before each step. Does not know DeepSpeed's engine.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from autotune.knob_values import Offload, Optimizer
from autotune.space.optimizers import OPTIMIZERS
from autotune.space.strategy import Strategy
from autotune.techniques.optimizers import build_optimizer

__all__ = [
    "ReplacedOptimizer",
    "is_kept",
    "kind_of",
    "replace_optimizer",
    "settings_of",
    "settings_to_keep",
]

_SETTINGS = ("lr", "weight_decay", "betas", "eps")
_SCHEDULED = ("lr", "weight_decay")
"""What the program may change between steps."""

_KINDS: Mapping[str, Optimizer] = {
    "adamw": Optimizer.ADAMW,
    "adam": Optimizer.ADAMW,
    "fusedadam": Optimizer.ADAMW,
    "deepspeedcpuadam": Optimizer.ADAMW,
} | {facts.class_name.lower(): kind for kind, facts in OPTIMIZERS.items()}
"""Kinds of optimizer by the class that implements them, in lower case."""


def kind_of(optimizer: object) -> Optimizer | None:
    """Which optimizer an object or a name of DeepSpeed's configuration is; None if unknown."""
    name = optimizer if isinstance(optimizer, str) else type(optimizer).__name__
    if type(optimizer).__module__.startswith("bitsandbytes"):
        # Its `AdamW` is one of 8 bit or a paged one by its arguments; so does a Trainer make it.
        plain = name.removeprefix("Paged").removesuffix("8bit").removesuffix("32bit")
        is_8bit = getattr(getattr(optimizer, "args", None), "optim_bits", 32) == 8
        is_paged = bool(getattr(optimizer, "is_paged", False))
        name = f"{'Paged' * is_paged}{plain}{'8bit' * is_8bit}"
    return _KINDS.get(name.lower())


class ReplacedOptimizer:
    """Carries learning rates and weight decay from the user's groups to those that train.

    Args:
        theirs: the parameter groups that the user's schedule writes to.
        owner: for each group of ours, the number of the group of theirs that it follows.
    """

    def __init__(self, theirs: Sequence[dict[str, Any]], owner: Sequence[int]) -> None:
        self._theirs = theirs
        self._owner = tuple(owner)
        self._seen = self._now()

    def _now(self) -> list[dict[str, float]]:
        return [
            {name: float(value) for name, value in settings_of(group, _SCHEDULED).items()}
            for group in self._theirs
        ]

    def carry_over(self, ours: Sequence[dict[str, Any]]) -> None:
        """Give the groups that train what has changed in theirs since the last call.

        What has not changed is left: a schedule of DeepSpeed's writes to ours itself.
        """
        now = self._now()
        for group, number in zip(ours, self._owner, strict=False):
            for name, value in now[number].items():
                if name in group and value != self._seen[number].get(name):
                    group[name] = value
        self._seen = now


def settings_to_keep(theirs: object) -> tuple[str, ...]:
    """Names of the settings of an optimizer that mean the same to AdamW.

    Adafactor's `eps` are two numbers, and the betas of Lion are no AdamW's.

    Args:
        theirs: the optimizer that the user made; None where DeepSpeed makes it.
    """
    of_adam = (Optimizer.ADAMW, Optimizer.ADAMW_8BIT, Optimizer.PAGED_ADAMW_8BIT)
    return _SETTINGS if theirs is None or kind_of(theirs) in of_adam else _SCHEDULED


def replace_optimizer(
    model: nn.Module,
    strategy: Strategy,
    groups: Sequence[dict[str, Any]],
    names: Sequence[str] = _SETTINGS,
) -> tuple[torch.optim.Optimizer | None, list[dict[str, Any]], ReplacedOptimizer]:
    """The optimizer of a strategy over the user's parameter groups.

    Args:
        model: with the strategy put on it.
        strategy: says which optimizer.
        groups: the user's, each with its parameters and settings.
        names: of the settings to keep.

    Returns:
        The optimizer to hand to DeepSpeed, or None where its JSON names it; the parameter groups
        for DeepSpeed in that case; and what carries the user's settings over.
    """
    learning_rate = float(settings_of(groups[0], ("lr",)).get("lr", 1e-5)) if groups else 1e-5
    optimizer = build_optimizer(model, strategy, learning_rate)
    if optimizer is None:
        plain = [{"params": list(g["params"])} | settings_of(g, names) for g in groups]
        return None, plain, ReplacedOptimizer(groups, range(len(groups)))
    parted, owner = _parted(optimizer.param_groups, groups)
    optimizer.param_groups[:] = parted
    return optimizer, [], ReplacedOptimizer(groups, owner)


def settings_of(group: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """What a group says; optimizers without a learning rate of their own have None there."""
    return {name: group[name] for name in names if group.get(name) is not None}


def _parted(
    ours: Sequence[dict[str, Any]], theirs: Sequence[dict[str, Any]]
) -> tuple[list[dict[str, Any]], list[int]]:
    """Our groups, parted where the user has several, each with the user's settings."""
    place = {id(p): number for number, group in enumerate(theirs) for p in group["params"]}
    parted: list[dict[str, Any]] = []
    owner: list[int] = []
    for group in ours:
        members: dict[int, list[Any]] = {}
        for parameter in group["params"]:
            members.setdefault(place.get(id(parameter), 0), []).append(parameter)
        for number, parameters in members.items():
            settings = settings_of(theirs[number], _SCHEDULED)
            parted.append({**group, **settings, "params": parameters})
            owner.append(number)
    return parted, owner


def is_kept(strategy: Strategy, theirs: object, *, offloaded: bool) -> bool:
    """Whether the user's own optimizer is what the strategy asks for.

    Args:
        strategy: says which optimizer, and where it works.
        theirs: the optimizer object that the user made.
        offloaded: whether that one works on the host.
    """
    on_host = strategy.offload_optimizer is not Offload.NONE
    is_same = kind_of(theirs) is strategy.optimizer
    return is_same and on_host == offloaded and not strategy.has_several_dtypes
