"""One stage of a causal model: its own decoder layers, and stand-ins for what others hold.

The model keeps its shape and its own forward code, so masks, positions and each layer's arguments
come from there; parameters keep their names. Knows no architecture and no DeepSpeed.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import nn

from autotune.errors import ConfigError
from autotune.question.stages import divide_layers

__all__ = ["StandIn", "cut_stage", "own_layers"]


class StandIn(nn.Module):
    """In the place of a module that another stage holds: gives what it gets.

    Keeps the plain attributes of the module, which the model's code may ask for.
    """

    def __init__(self, absent: nn.Module, *, receives: bool = False) -> None:
        super().__init__()
        plain = {k: v for k, v in vars(absent).items() if k[0] != "_" and k != "forward"}
        self.__dict__.update(plain)
        self.receives = receives
        """Whether it stands right before this rank's layers."""
        self.hidden: torch.Tensor | None = None
        """What it gives to them, while it is set: what the stage before has sent."""

        self._is_embedding = isinstance(absent, nn.Embedding)

    def forward(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """The first tensor of floats among the arguments, or `hidden`."""
        if self.hidden is not None:
            return self.hidden
        return _hand_on(args, kwargs, is_embedding=self._is_embedding)


def own_layers(layers: nn.ModuleList) -> nn.ModuleList:
    """The decoder layers of a list that this rank holds: all, unless the model was cut."""
    own = [layer for layer in layers if not isinstance(layer, StandIn)]
    return layers if len(own) == len(layers) else nn.ModuleList(own)


def cut_stage(model: nn.Module, layers: nn.ModuleList, *, stage: int, num_stages: int) -> None:
    """Leave in the model what one stage of a pipeline needs, in place.

    The layers are divided by parameters. A tied embedding stays in the first and the last stage.

    Args:
        model: a causal language model of transformers, on any device, also the meta device.
        layers: its decoder layers.
        stage: which stage to leave.
        num_stages: how many there are.

    Raises:
        ConfigError: the model cannot be cut between its layers.
    """
    before, after = _outside(model, layers)
    layer_size = _num_parameters([layers]) / len(layers)
    own = divide_layers(
        len(layers),
        num_stages,
        before=_num_parameters(before.values()) / layer_size,
        after=_num_parameters(after.values()) / layer_size,
    )[stage]
    needed = [*(before.values() if stage == 0 else ())]
    needed += after.values() if stage == num_stages - 1 else ()
    kept = {parameter for module in needed for parameter in module.parameters()}
    for index in range(len(layers)):
        if index not in own:
            layers[index] = StandIn(layers[index], receives=index == own.start - 1)
    for name, module in (before | after).items():
        if kept.isdisjoint(module.parameters()):
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, StandIn(module))


def _num_parameters(modules: Iterable[nn.Module]) -> int:
    return sum(parameter.numel() for module in modules for parameter in module.parameters())


def _outside(
    model: nn.Module, layers: nn.ModuleList
) -> tuple[dict[str, nn.Module], dict[str, nn.Module]]:
    """The modules with parameters before the decoder layers and after them, by name.

    The model's own forward tells: for two tokens, with every such module only handing on what it
    gets. That takes no time, and works where parameters are on the meta device.
    """
    base: Any = getattr(model, str(model.base_model_prefix), None)
    if base is None:
        raise ConfigError(
            f"pipeline_parallel_size needs a causal model of transformers with a base model; "
            f"{type(model).__name__} has none"
        )
    inside = set(layers.modules())
    modules = {
        name: module
        for name, module in model.named_modules()
        if module not in inside and next(module.parameters(recurse=False), None) is not None
    }
    called: list[nn.Module] = []
    width = int(model.config.hidden_size)  # type: ignore[union-attr, arg-type]
    embeds = torch.zeros(2, 2, width, device=_buffer_device(model))
    with contextlib.ExitStack() as stack, torch.no_grad():
        for module in (*modules.values(), *layers):
            stack.enter_context(_standing_in(module, called))
        hidden = base(inputs_embeds=embeds, use_cache=False).last_hidden_state
    if hidden.shape != embeds.shape or layers[0] not in called:
        raise ConfigError(
            f"pipeline_parallel_size cannot cut {type(model).__name__}: its layers do more than "
            "give hidden states to each other"
        )
    last = {model.get_output_embeddings(), *called[called.index(layers[0]) :]}  # type: ignore[operator]
    after = {name: module for name, module in modules.items() if module in last}
    return {name: m for name, m in modules.items() if name not in after}, after


@contextlib.contextmanager
def _standing_in(module: nn.Module, called: list[nn.Module]) -> Iterator[None]:
    """For a while the module only hands on what it gets, and writes down that it was called."""

    def forward(*args: Any, **kwargs: Any) -> torch.Tensor:
        called.append(module)
        return _hand_on(args, kwargs, is_embedding=isinstance(module, nn.Embedding))

    own = vars(module).get("forward")
    module.forward = forward
    try:
        yield
    finally:
        del module.forward
        if own is not None:
            module.forward = own


def _hand_on(args: tuple[Any, ...], kwargs: dict[str, Any], *, is_embedding: bool) -> torch.Tensor:
    if is_embedding:
        # Of positions, or of kinds of tokens: added to hidden states that go nowhere.
        return torch.zeros(())
    given = (*args, *kwargs.values())
    return next(t for t in given if isinstance(t, torch.Tensor) and t.is_floating_point())


def _buffer_device(model: nn.Module) -> torch.device:
    """Where the buffers are, such as rotary frequencies: parameters may be on the meta device."""
    buffer = next(model.buffers(), None)
    return torch.device("cpu") if buffer is None else buffer.device
