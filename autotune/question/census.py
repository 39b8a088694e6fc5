"""A model's parameters by what they belong to, counted on its own modules without memory.

Biases, extra norms, tables of positions and experts are so counted as they are, whatever the
architecture. Does not know what a model keeps or computes. Imports transformers when it counts.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["Census", "is_attention", "take_census"]

_ATTENTION_WORDS = ("attn", "attention")

_CANNOT_BUILD = (
    AttributeError,
    ImportError,
    IndexError,
    KeyError,
    RuntimeError,
    TypeError,
    ValueError,
    ZeroDivisionError,
)
"""What the code of a model raises that cannot be built from its configuration alone."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Census:
    """Of a whole model; a shared weight counts once, with the embedding."""

    attention_linears: Mapping[str, tuple[int, int]]
    """Inputs and outputs of the linear layers of attention, by name, added up over all layers."""
    mlp_linears: Mapping[str, tuple[int, int]]
    """The same of all other linear layers of decoder layers."""
    attention: int
    """Matrices of attention."""
    mlp: int
    """Matrices of all else in decoder layers: experts and routers among them."""
    layers: int
    """All parameters of decoder layers: with biases and norms."""
    embedding: int
    """Tables of tokens and positions, and what projects them."""
    lm_head: int
    """0 where it shares the embedding's."""
    norm: int
    """Of the norm behind the last layer, and whatever else there is."""
    largest: int
    """Elements of the largest parameter."""
    sides: int
    """Rows and columns of all matrices of decoder layers."""

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> Census:
        """Read back what `dataclasses.asdict` and JSON made of it."""
        linears = {
            key: {name: (inputs, outputs) for name, (inputs, outputs) in record[key].items()}
            for key in ("attention_linears", "mlp_linears")
        }
        return cls(**{**record, **linears})


def is_attention(name: str) -> bool:
    """Whether a module of a decoder layer is its attention, by the module's own name."""
    return any(word in name for word in _ATTENTION_WORDS)


def take_census(config: Mapping[str, Any], num_layers: int) -> Census | None:
    """Count the causal model of a Hugging Face configuration; None if it cannot be built so."""
    try:
        return _count(_build(config), num_layers)
    except _CANNOT_BUILD:
        return None


def _build(config: Mapping[str, Any]) -> Any:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    fields = {key: value for key, value in config.items() if key != "model_type"}
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(
            AutoConfig.for_model(config["model_type"], **fields), attn_implementation="eager"
        )
    model.tie_weights()
    return model


def _count(model: Any, num_layers: int) -> Census:
    """Go over the parameters once; whatever is in a decoder layer and not attention is MLP."""
    prefix = _layers_prefix(model, num_layers)
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
    attention, mlp = _linears(model, prefix)
    names = ("attention", "mlp", "layers", "embedding", "lm_head", "norm", "largest", "sides")
    return Census(
        attention_linears=attention, mlp_linears=mlp, **{name: totals[name] for name in names}
    )


def _layers_prefix(model: Any, num_layers: int) -> str:
    from torch import nn

    for path, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == num_layers:
            return f"{path}."
    raise ValueError("no list of decoder layers")


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
