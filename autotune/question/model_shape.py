"""A decoder-only model's numbers: its sizes, its linear layers and its parameters.

From a census of the built model where there is one, and else by the published layer definitions.
Does not know where a configuration comes from, nor what is trained.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from autotune.knob_values import ModuleGroup
from autotune.question.adapter_targets import (
    ADAPTER_GROUPS,
    ALL_LINEAR,
    EXPERTS,
    can_have_adapter,
    has_adapter,
)
from autotune.question.census import Census
from autotune.question.expert_adapters import ExpertAdapters

__all__ = ["ModelShape"]

_NUM_CHOICES = (
    "num_experts_per_tok",
    "num_experts_per_token",
    "moe_topk",
    "moe_k",
    "top_k_experts",
)
"""Names of the number of experts that a token is routed to; differ between architectures."""

_PLAIN_MLP = {"opt", "gpt2", "gpt_neox", "gptj", "gpt_neo", "bloom", "falcon", "phi"}


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelShape:
    """The numbers of an architecture that memory and time depend on.

    Without a census parameter counts follow the published layer definitions; biases and positions
    are counted where the architecture has them. `tests/question/test_workload.py` holds both
    against built models.
    """

    name: str
    """As the user typed it."""
    model_type: str
    """Hugging Face's `model_type`."""
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    vocab_size: int
    max_position_embeddings: int
    tie_word_embeddings: bool
    embedding_size: int
    """Width of the embedding table; differs from `hidden_size` in OPT-350M alone."""
    num_experts: int = 1
    """MLPs of a layer (Mixtral); 1 for dense models."""
    config: Mapping[str, Any] = field(default_factory=dict, hash=False)
    """The whole Hugging Face configuration, for building the model."""
    source: str | None = None
    """Folder or Hugging Face id whose own code builds the model; only with --trust-remote-code."""
    census: Census | None = field(default=None, hash=False)
    """The parameters of the built model. None for presets, which are counted without transformers,
    and for models that cannot be built from their configuration."""
    whole_type: str = ""
    """`model_type` of the vision-language model whose language part this is; empty where it is a
    model of its own."""
    tower_parameters: int = 0
    """Parameters of that model beside the language part: vision tower and projector. 0 where they
    are left away."""
    trains_tower: bool = False
    """Whether those are trained; otherwise they are frozen."""

    def __post_init__(self) -> None:
        """Take a census that comes from JSON."""
        if isinstance(self.census, Mapping):
            object.__setattr__(self, "census", Census.from_dict(self.census))

    @property
    def has_gated_mlp(self) -> bool:
        """Whether the MLP has a gate beside up and down (SwiGLU, GeGLU)."""
        return self.model_type not in _PLAIN_MLP

    @property
    def attention_linears(self) -> dict[str, tuple[int, int]]:
        """The linear layers of one attention block, by name: (inputs, outputs).

        The mean over all layers, where they differ.
        """
        if self.census is not None:
            return self._of_one_layer(self.census.attention_linears)
        h, q = self.hidden_size, self.num_attention_heads * self.head_dim
        kv = self.num_key_value_heads * self.head_dim
        if self.model_type == "gpt2":
            return {"c_attn": (h, q + 2 * kv), "c_proj": (q, h)}
        if self.model_type in ("gpt_neox", "bloom", "falcon"):
            return {"query_key_value": (h, q + 2 * kv), "dense": (q, h)}
        if self.model_type == "phi3":
            return {"qkv_proj": (h, q + 2 * kv), "o_proj": (q, h)}
        outs = {"opt": "out_proj", "gpt_neo": "out_proj", "gptj": "out_proj", "phi": "dense"}
        out = outs.get(self.model_type, "o_proj")
        return {"q_proj": (h, q), "k_proj": (h, kv), "v_proj": (h, kv), out: (q, h)}

    @property
    def mlp_linears(self) -> dict[str, tuple[int, int]]:
        """The linear layers of one MLP, by name: (inputs, outputs); of a mixture, one expert's."""
        if self.census is not None and self.num_experts == 1:
            return self._of_one_layer(self.census.mlp_linears)
        h, f = self.hidden_size, self.intermediate_size
        if self.model_type == "phi3":
            return {"gate_up_proj": (h, 2 * f), "down_proj": (f, h)}
        if self.has_gated_mlp:
            return {"gate_proj": (h, f), "up_proj": (h, f), "down_proj": (f, h)}
        if self.model_type in ("gpt2", "gpt_neo"):
            return {"c_fc": (h, f), "c_proj": (f, h)}
        if self.model_type == "gptj":
            return {"fc_in": (h, f), "fc_out": (f, h)}
        if self.model_type in ("gpt_neox", "bloom", "falcon"):
            return {"dense_h_to_4h": (h, f), "dense_4h_to_h": (f, h)}
        return {"fc1": (h, f), "fc2": (f, h)}

    @property
    def linear_parameters_per_layer(self) -> int:
        """Weights of the linear layers of one decoder block, without biases."""
        if self.census is not None:
            return (self.census.attention + self.census.mlp) // self.num_hidden_layers
        attention = sum(i * o for i, o in self.attention_linears.values())
        return attention + self.num_experts * sum(i * o for i, o in self.mlp_linears.values())

    @property
    def largest_weight(self) -> int:
        """Elements of the largest single parameter; a mixture's experts are one parameter."""
        if self.census is not None:
            return self.census.largest
        linears = [*self.attention_linears.values(), *self.mlp_linears.values()]
        mlp = sum(i * o for i, o in self.mlp_linears.values())
        experts = mlp * self.num_experts if self.num_experts > 1 else 0
        embedding = self.vocab_size * max(self.hidden_size, self.embedding_size)
        return max(embedding, experts, *(i * o for i, o in linears))

    @property
    def linear_sides(self) -> int:
        """Rows and columns of the weights of all linear layers of the decoder blocks, added up."""
        if self.census is not None:
            return self.census.sides
        attention = sum(i + o for i, o in self.attention_linears.values())
        mlp = sum(i + o for i, o in self.mlp_linears.values())
        return self.num_hidden_layers * (attention + self.num_experts * mlp)

    @property
    def parameters_per_layer(self) -> int:
        """All parameters of one decoder block."""
        if self.census is not None:
            return self.census.layers // self.num_hidden_layers
        linears = [*self.attention_linears.values(), *self.mlp_linears.values()]
        if self.model_type == "qwen2":
            biases = sum(o for name, (_, o) in self.attention_linears.items() if name != "o_proj")
        else:
            biases = 0 if self.has_gated_mlp else sum(o for _, o in linears)
        norms = 2 * self.norm_parameters
        router = self.hidden_size * self.num_experts if self.num_experts > 1 else 0
        return self.linear_parameters_per_layer + biases + norms + router

    @property
    def norm_parameters(self) -> int:
        """Parameters of the last norm: weights, and biases beside plain MLPs (LayerNorm)."""
        if self.census is not None:
            return self.census.norm
        return self.hidden_size * (1 if self.has_gated_mlp else 2)

    @property
    def embedding_parameters(self) -> int:
        """The token embedding, with learned positions where the architecture has them.

        A vision tower that is trained is one more embedding, of images.
        """
        if self.census is not None:
            return self.census.embedding + self.tower_parameters * self.trains_tower
        positions = {"opt": self.max_position_embeddings + 2, "gpt2": self.max_position_embeddings}
        projections = 2 * self.embedding_size * self.hidden_size
        return (
            self.vocab_size * self.embedding_size
            + positions.get(self.model_type, 0) * self.hidden_size
            + (projections if self.embedding_size != self.hidden_size else 0)
        )

    @property
    def lm_head_parameters(self) -> int:
        """The output projection; 0 where it shares the embedding's weights."""
        if self.census is not None:
            return self.census.lm_head
        return 0 if self.tie_word_embeddings else self.vocab_size * self.hidden_size

    @property
    def num_parameters(self) -> int:
        """All parameters, shared ones once."""
        return (
            self.embedding_parameters
            + self._layer_parameters
            + self.norm_parameters
            + self.lm_head_parameters
        )

    @property
    def num_held_parameters(self) -> int:
        """All parameters, with those of a frozen vision tower."""
        return self.num_parameters + self.frozen_tower_parameters

    @property
    def frozen_tower_parameters(self) -> int:
        """Parameters of a vision tower that are held and not trained."""
        return 0 if self.trains_tower else self.tower_parameters

    @property
    def num_language_parameters(self) -> int:
        """Parameters of the language part alone."""
        return self.num_held_parameters - self.tower_parameters

    @property
    def experts_per_token(self) -> int:
        """MLPs of a layer that one token passes: 1 for dense models."""
        if self.num_experts == 1:
            return 1
        told = (self.config.get(name) for name in _NUM_CHOICES)
        return next((num for num in told if isinstance(num, int) and num > 0), 2)

    @property
    def expert_parameters(self) -> int:
        """Parameters of routed experts that can be computed in several ways; 0 without any."""
        return self.census.experts if self.census is not None else 0

    @property
    def _layer_parameters(self) -> int:
        if self.census is not None:
            return self.census.layers
        return self.num_hidden_layers * self.parameters_per_layer

    def _of_one_layer(self, linears: Mapping[str, tuple[int, int]]) -> dict[str, tuple[int, int]]:
        """The mean of sides that were added up over all layers."""
        num = self.num_hidden_layers
        return {
            name: (inputs // num, outputs // num) for name, (inputs, outputs) in linears.items()
        }

    @property
    def adapter_linears(self) -> dict[ModuleGroup, dict[str, tuple[int, int]]]:
        """The linear layers of one decoder block that can have adapters, by group and name.

        Not the experts of a mixture: transformers keeps their weights as one tensor, which is no
        linear layer. Nor layers that PEFT adapts experts in place of (`expert_adapters.py`).
        """
        of_experts = {name for each in self._expert_adapters.values() for name in each.names}
        return {
            group: {name: sides for name, sides in linears.items() if name not in of_experts}
            for group, linears in self._named_linears.items()
        }

    def unknown_target(self, targets: tuple[str, ...]) -> str | None:
        """Why the targets of LoRA do not go with this model, in words; None where they do."""
        linears = self._named_linears
        groups = [group for group in ADAPTER_GROUPS if linears[group]]
        names = [name for group in groups for name in linears[group]]
        of_experts = (EXPERTS,) if self.expert_parameters else ()
        known = dict.fromkeys((ALL_LINEAR, *map(str, groups), *names, *of_experts))
        for target in targets:
            if target not in known:
                words = f"{self.name} has no linear layer {target!r}; choose from"
                return f"{words} {', '.join(known)}{self._why_no_experts()}"
        return self._parted_experts(targets)

    def num_lora_parameters(self, rank: int, targets: tuple[str, ...]) -> int:
        """Parameters of the adapters that PEFT makes for the targets, experts' among them."""
        return self._num_on_linears(rank, targets) + self.num_expert_adapters(rank, targets)

    def num_expert_adapters(self, rank: int, targets: tuple[str, ...]) -> int:
        """Parameters of the adapters on routed experts that PEFT makes for the targets."""
        if EXPERTS in targets and self.census is not None:
            return rank * self.census.expert_sides
        chosen = self._chosen(targets)
        return sum(
            rank * (each.inputs + each.outputs)
            for each in self._expert_adapters.values()
            if chosen.issuperset(each.names)
        )

    def experts_in_words(self, targets: tuple[str, ...]) -> str | None:
        """Whether the experts of a mixture have adapters; None for dense models."""
        if self.num_experts == 1 and not self.num_expert_adapters(1, targets):
            return None
        if not self.num_expert_adapters(1, targets):
            more = ",".join((*targets, EXPERTS))
            hint = f" (--lora-targets {more} puts some there)" if self.expert_parameters else ""
            return f"the routed experts have no adapters{hint}"
        if EXPERTS in targets:
            return "adapters on the routed experts"
        names = sorted(
            name
            for each in self._expert_adapters.values()
            for name in each.names
            if name in self._chosen(targets)
        )
        return (
            f"adapters on the routed experts, which PEFT puts there in place of the linear layers "
            f"{', '.join(names)}"
        )

    @property
    def _expert_adapters(self) -> Mapping[str, ExpertAdapters]:
        return self.census.expert_adapters if self.census is not None else {}

    @property
    def _named_linears(self) -> dict[ModuleGroup, dict[str, tuple[int, int]]]:
        """What targets may name: linear layers of one decoder block, the mean over all blocks."""
        if self.census is not None:
            mlp = self._of_one_layer(self.census.mlp_linears)
        else:
            mlp = self.mlp_linears if self.num_experts == 1 else {}
        groups = {ModuleGroup.ATTENTION: self.attention_linears, ModuleGroup.MLP: mlp}
        return {
            group: {
                name: sides
                for name, sides in linears.items()
                if can_have_adapter(name, self.model_type)
            }
            for group, linears in groups.items()
        }

    def _chosen(self, targets: tuple[str, ...]) -> set[str]:
        """Names of the linear layers that the targets name."""
        return {
            name
            for group, linears in self._named_linears.items()
            for name in linears
            if has_adapter(name, group, targets)
        }

    def _num_on_linears(self, rank: int, targets: tuple[str, ...]) -> int:
        """Parameters of adapters on linear layers: rank x (inputs + outputs) for each."""
        linears: Mapping[ModuleGroup, Mapping[str, tuple[int, int]]] = self.adapter_linears
        num_layers = self.num_hidden_layers
        can_have = {group: set(names) for group, names in linears.items()}
        if self.census is not None:
            attention, mlp = self.census.attention_linears, self.census.mlp_linears
            linears, num_layers = {ModuleGroup.ATTENTION: attention, ModuleGroup.MLP: mlp}, 1
        return num_layers * sum(
            rank * (inputs + outputs)
            for group, sides in linears.items()
            for name, (inputs, outputs) in sides.items()
            if name in can_have[group] and has_adapter(name, group, targets)
        )

    def _why_no_experts(self) -> str:
        if self.num_experts == 1:
            return ""
        return "; its routed experts are not linear layers"

    def _parted_experts(self, targets: tuple[str, ...]) -> str | None:
        """What PEFT refuses: a part of the names that it holds for one tensor of experts.

        Nor does it tell a tensor that is named itself from one that it adapts for such names.
        """
        chosen = self._chosen(targets)
        held = [name for each in self._expert_adapters.values() for name in each.names]
        both = [name for name in held if name in chosen] if EXPERTS in targets else []
        if both:
            return (
                f"PEFT adapts the experts of {self.name} in place of {both[0]} already; leave "
                f"{EXPERTS} out, or name other linear layers"
            )
        for each in self._expert_adapters.values():
            has = [name for name in each.names if name in chosen]
            if has and len(has) < len(each.names):
                (lacking, *_) = (name for name in each.names if name not in chosen)
                return (
                    f"PEFT takes {has[0]} of {self.name} for a part of its experts, and puts no "
                    f"adapters on it without {lacking}; name other linear layers"
                )
        if self.census is not None and not self.num_lora_parameters(1, targets):
            return f"PEFT puts no adapters on {', '.join(sorted(chosen))} of {self.name}"
        return None
