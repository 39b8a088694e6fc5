"""Stands in for `deepspeed.initialize` and `deepspeed.zero.Init` while the user's program runs.

The program calls DeepSpeed as it always does; the strategy's configuration, kernels, checkpoints
and optimizer are put in there. Does not know trainers, nor how steps are timed.
"""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from autotune.errors import ConfigError
from autotune.question.workload import Method
from autotune.script.configuration import load_configuration, with_strategy, without_side_effects
from autotune.script.replaced_optimizer import (
    ReplacedOptimizer,
    is_kept,
    kind_of,
    replace_optimizer,
    settings_of,
    settings_to_keep,
)
from autotune.script.steering import Steering, Watcher
from autotune.space.strategy import Strategy
from autotune.techniques.apply import apply_strategy

__all__ = ["DeepSpeedCalls"]

_EPSILON = 1e-8
"""Of Adam, where it is not told (`torch.optim.AdamW`)."""


class DeepSpeedCalls:
    """DeepSpeed's two entry points, for one run of the user's command.

    Args:
        steering: what to put in.
        watcher: hears of the engine that trains.
    """

    def __init__(self, steering: Steering, watcher: Watcher) -> None:
        self._steering = steering
        self._watcher = watcher
        self._has_engine = False

    def install(self) -> None:
        """Take the place of DeepSpeed's functions, before the user's program imports them."""
        import deepspeed

        self._original = deepspeed.initialize
        self._signature = inspect.signature(deepspeed.initialize)

        @functools.wraps(deepspeed.initialize)
        def initialize(*args: Any, **kwargs: Any) -> Any:
            return self._initialize(*args, **kwargs)

        deepspeed.initialize = initialize
        if self._steering.strategy is not None:
            self._steer_partitioning(self._steering.strategy)

    def _steer_partitioning(self, strategy: Strategy) -> None:
        """Have `deepspeed.zero.Init` divide weights if, and only if, the strategy is ZeRO-3."""
        from deepspeed.runtime.zero.partition_parameters import Init

        original, config = Init.__init__, dict(self._steering.config)
        signature = inspect.signature(original)

        @functools.wraps(original)
        def init(*args: Any, **kwargs: Any) -> None:
            call = signature.bind(*args, **kwargs)
            if strategy.zero_stage != 3:
                call.arguments["enabled"] = False
            else:
                call.arguments.pop("config", None)
                call.arguments["config_dict_or_path"] = config
            original(*call.args, **call.kwargs)

        Init.__init__ = init

    def _initialize(self, *args: Any, **kwargs: Any) -> Any:
        call = dict(self._signature.bind(*args, **kwargs).arguments)
        theirs = _configuration(call)
        if not self._trains(call, theirs):
            return self._made(call, theirs)
        self._has_engine = True
        strategy = self._steering.strategy
        carried: ReplacedOptimizer | None = None
        if strategy is not None:
            theirs, carried = self._steered(call, theirs, strategy)
        made = self._made(call, theirs)
        if carried is not None:
            _carry_before_steps(made[0], carried)
        self._watcher.engine_made(made[0], call)
        return made

    def _made(self, call: dict[str, Any], config: Mapping[str, Any]) -> Any:
        """What DeepSpeed makes of a call; in a trial an engine that writes nothing."""
        if not self._steering.is_trial:
            _set_configuration(call, config)
            return self._original(**call)
        _set_configuration(call, without_side_effects(config))
        made = self._original(**call)
        _save_nothing(made[0])
        return made

    def _trains(self, call: Mapping[str, Any], theirs: Mapping[str, Any]) -> bool:
        """Whether this engine is the one that learns: reference models have engines too."""
        if self._has_engine:
            return False
        given = (call.get("optimizer"), call.get("model_parameters"), call.get("lr_scheduler"))
        model = call.get("model")
        learns = isinstance(model, nn.Module) and any(p.requires_grad for p in model.parameters())
        return learns and (any(each is not None for each in given) or "optimizer" in theirs)

    def _steered(
        self, call: dict[str, Any], theirs: Mapping[str, Any], strategy: Strategy
    ) -> tuple[dict[str, Any], ReplacedOptimizer | None]:
        """Put the strategy on the call's model and optimizer; the configuration to use."""
        from deepspeed.runtime.pipe.module import PipelineModule

        model = call["model"]
        if isinstance(model, PipelineModule):
            raise ConfigError("the command trains a PipelineModule, which autotune cannot steer")
        call["model"] = model = put_on(model, strategy, self._steering)
        config = with_strategy(theirs, self._steering.config)
        own = _own_optimizer(call)
        offloaded = type(own).__name__ == "DeepSpeedCPUAdam"
        self._say_replaced(own or theirs.get("optimizer", {}).get("type"), strategy)
        if own is not None and is_kept(strategy, own, offloaded=offloaded):
            config.pop("optimizer", None)
            config["zero_allow_untested_optimizer"] = True
            _mend_epsilon(own)
            return config, None
        groups = _groups(call, own, theirs)
        names = settings_to_keep(own)
        optimizer, plain, carried = replace_optimizer(model, strategy, groups, names)
        call["optimizer"] = optimizer
        call["model_parameters"] = plain if optimizer is None else None
        if optimizer is None and own is not None:
            config["optimizer"]["params"] |= settings_of(groups[0], names) if groups else {}
        return config, carried if own is not None else None

    def _say_replaced(self, theirs: object, strategy: Strategy) -> None:
        """An optimizer of another kind trains in the place of theirs, with its learning rate."""
        if theirs is not None and kind_of(theirs) is not strategy.optimizer:
            name = theirs if isinstance(theirs, str) else type(theirs).__name__
            self._steering.on_change(f"{strategy.optimizer} trains in the place of {name}")


def put_on(model: nn.Module, strategy: Strategy, steering: Steering) -> nn.Module:
    """Kernels, checkpoints and tiles of a strategy on a model that the user built.

    Its adapters are the user's. A model whose layers are not known keeps them as they are.
    """
    if steering.knows_layers:
        if "fused_kernels" in steering.by_trainer:
            strategy = replace(strategy, fused_kernels=False)
        return apply_strategy(model, strategy, method=Method.FULL, lora_targets=())
    switch: Any = model
    if strategy.checkpoint_interval and hasattr(model, "gradient_checkpointing_enable"):
        switch.gradient_checkpointing_enable({"use_reentrant": False})
    elif hasattr(model, "gradient_checkpointing_disable"):
        switch.gradient_checkpointing_disable()
    return model


def _configuration(call: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration of a call: an argument, or the file that its `args` name."""
    given = call.get("config") or call.get("config_params")
    if given is None:
        given = getattr(call.get("args"), "deepspeed_config", None)
    if given is None:
        raise ConfigError("deepspeed.initialize was given no configuration")
    return load_configuration(given)


def _set_configuration(call: dict[str, Any], config: Mapping[str, Any]) -> None:
    """Put a configuration in the place of that of a call."""
    call.pop("config_params", None)
    call["config"] = dict(config)
    if getattr(call.get("args"), "deepspeed_config", None) is not None:
        # DeepSpeed refuses to be told twice; the program may read its own arguments again.
        call["args"] = copy.copy(call["args"])
        call["args"].deepspeed_config = None


def _mend_epsilon(optimizer: torch.optim.Optimizer) -> None:
    """Give Adam one number: Accelerate makes it of Adafactor, whose `eps` are two.

    Accelerate 1.15, `map_pytorch_optim_to_deepspeed`, where optimizer states are offloaded.
    """
    for group in optimizer.param_groups:
        if isinstance(group.get("eps"), tuple) and "betas" in group:
            group["eps"] = _EPSILON


def _own_optimizer(call: dict[str, Any]) -> torch.optim.Optimizer | None:
    """The optimizer object of a call; one that is given as a function is made, as DeepSpeed does.

    `model_parameters` become a list: a generator can be read only once.
    """
    if call.get("model_parameters") is not None:
        call["model_parameters"] = list(call["model_parameters"])
    own: Any = call.get("optimizer")
    if own is not None and not isinstance(own, torch.optim.Optimizer) and callable(own):
        members = call.get("model_parameters")
        own = call["optimizer"] = own(members if members else list(_trainable(call)))
    return own  # type: ignore[no-any-return]


def _trainable(call: Mapping[str, Any]) -> Iterable[nn.Parameter]:
    return (p for p in call["model"].parameters() if p.requires_grad)


def _groups(
    call: Mapping[str, Any], own: torch.optim.Optimizer | None, theirs: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """The user's parameter groups, with the settings that they have."""
    if own is not None:
        return own.param_groups
    given = call.get("model_parameters")
    members: list[Any] = list(given) if given is not None else list(_trainable(call))
    params = theirs.get("optimizer", {}).get("params", {})
    settings = {k: v for k, v in params.items() if k in ("lr", "weight_decay") and v != "auto"}
    if members and isinstance(members[0], dict):
        return [settings | group for group in members]
    return [settings | {"params": members}]


def _carry_before_steps(engine: Any, carried: ReplacedOptimizer) -> None:
    """Have the user's schedule reach the optimizer that trains."""
    step = engine.step

    @functools.wraps(step)
    def step_with_settings(*args: Any, **kwargs: Any) -> Any:
        carried.carry_over(engine.optimizer.param_groups)
        return step(*args, **kwargs)

    engine.step = step_with_settings


def _save_nothing(engine: Any) -> None:
    """Leave the user's checkpoints alone in a trial."""
    for name in ("save_checkpoint", "save_16bit_model", "save_fp16_model"):
        setattr(engine, name, _nothing)
    for module in engine.module.modules():
        for name in ("save_pretrained", "push_to_hub"):
            if hasattr(module, name):
                setattr(module, name, _nothing)


def _nothing(*args: Any, **kwargs: Any) -> bool:
    """Stands for what saves."""
    return True
