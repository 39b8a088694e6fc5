"""Counts a model's parameters by what they belong to, on its modules without memory.

Biases, extra norms, tables of positions and experts are so counted as they are, whatever the
architecture. Does not know what a model keeps or computes.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from autotune.question.empty_model import layers_path
from autotune.question.expert_adapters import ExpertAdapters, find_expert_adapters

__all__ = ["Census", "has_implementations", "is_attention", "take_census"]

_ATTENTION_WORDS = ("attn", "attention")


@dataclass(frozen=True, kw_only=True, slots=True)
class Census:
    """Parameters of a whole model by role; a shared weight counts once, with the embedding."""

    attention_linears: Mapping[str, tuple[int, int]]
    """Inputs and outputs of the linear layers of attention, by name, added up over all layers."""
    mlp_linears: Mapping[str, tuple[int, int]]
    """Inputs and outputs of all other linear layers of decoder layers, by name, added up."""
    attention: int
    """Parameters in matrices of attention."""
    mlp: int
    """Parameters in all other matrices of decoder layers, experts and routers among them."""
    layers: int
    """All parameters of decoder layers, with biases and norms."""
    embedding: int
    """Parameters in tables of tokens and positions, and in what projects them."""
    lm_head: int
    """Parameters of the output projection; 0 where it shares the embedding's weights."""
    norm: int
    """Parameters of the norm behind the last layer, and of whatever else there is."""
    largest: int
    """Elements of the largest parameter."""
    sides: int
    """Rows and columns of all matrices of decoder layers."""
    experts: int = 0
    """Parameters of routed experts for which transformers has several implementations."""
    expert_sides: int = 0
    """Rows and columns of the matrices of all those experts."""
    expert_adapters: Mapping[str, ExpertAdapters] = field(default_factory=dict)
    """What PEFT adapts in place of linear layers, by the name of the parameter."""

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> Census:
        """Read back what `dataclasses.asdict` and JSON made of it."""
        linears = {
            key: {name: (inputs, outputs) for name, (inputs, outputs) in record[key].items()}
            for key in ("attention_linears", "mlp_linears")
        }
        experts = {
            parameter: ExpertAdapters.from_dict(each)
            for parameter, each in record.get("expert_adapters", {}).items()
        }
        return cls(**{**record, **linears, "expert_adapters": experts})


def is_attention(name: str) -> bool:
    """Whether a module of a decoder layer is its attention, by the module's own name."""
    return any(word in name for word in _ATTENTION_WORDS)


def has_implementations(module: Any) -> bool:
    """Whether a module is the experts of a mixture, computed in one of several ways.

    By what transformers sets on it (`integrations/moe.py`, `use_experts_implementation`).
    """
    return hasattr(module, "has_gate") and hasattr(module, "is_transposed")


def take_census(model: Any, num_layers: int) -> Census:
    """Go over the parameters once; whatever is in a decoder layer and not attention is MLP.

    Args:
        model: a causal model of transformers, on any device.
        num_layers: how many decoder layers it has.

    Raises:
        LookupError: the model has no list of so many decoder layers.
    """
    prefix = f"{layers_path(model, num_layers)}."
    head = model.get_output_embeddings()
    of_head = {id(parameter) for parameter in head.parameters()} if head is not None else set()
    shared = {id(parameter) for parameter in model.get_input_embeddings().parameters()}
    totals: Counter[str] = Counter()
    for path, parameter in model.named_parameters():
        size = parameter.numel()
        totals["largest"] = max(totals["largest"], size)
        if path.startswith(prefix):
            totals["layers"] += size
            if parameter.dim() >= 2:
                totals["attention" if _is_in_attention(path[len(prefix) :]) else "mlp"] += size
                num_matrices = size // (parameter.shape[-1] * parameter.shape[-2])
                totals["sides"] += num_matrices * sum(parameter.shape[-2:])
        elif id(parameter) in of_head - shared:
            totals["lm_head"] += size
        else:
            totals["norm" if parameter.dim() == 1 else "embedding"] += size
    for parameter in _of_experts(model):
        totals["experts"] += parameter.numel()
        if parameter.dim() == 3:
            totals["expert_sides"] += parameter.shape[0] * sum(parameter.shape[1:])
    attention, mlp = _linears(model, prefix)
    names = ("attention", "mlp", "layers", "embedding", "lm_head", "norm", "largest", "sides")
    return Census(
        attention_linears=attention,
        mlp_linears=mlp,
        expert_adapters=find_expert_adapters(model, {**attention, **mlp}),
        experts=totals["experts"],
        expert_sides=totals["expert_sides"],
        **{name: totals[name] for name in names},
    )


def _of_experts(model: Any) -> Iterator[Any]:
    """The parameters of routed experts."""
    for module in model.modules():
        if has_implementations(module):
            yield from module.parameters()


def _linears(model: Any, prefix: str) -> tuple[dict[str, tuple[int, int]], ...]:
    """Sides of the linear layers of attention and of the rest, by name."""
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    sums = [defaultdict[str, list[int]](lambda: [0, 0]) for _ in range(2)]
    for path, module in model.named_modules():
        if not path.startswith(prefix) or not isinstance(module, nn.Linear | Conv1D):
            continue
        outputs, inputs = module.weight.shape
        if isinstance(module, Conv1D):
            inputs, outputs = outputs, inputs
        sides = sums[0 if _is_in_attention(path[len(prefix) :]) else 1]
        name = path.rpartition(".")[2]
        sides[name][0] += inputs
        sides[name][1] += outputs
    return tuple({name: (i, o) for name, (i, o) in group.items()} for group in sums)


def _is_in_attention(path: str) -> bool:
    """Whether one of the modules around it is attention; `path` begins with the layer's number."""
    return any(is_attention(parent) for parent in path.split(".")[1:-1])
