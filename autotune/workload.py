"""What is trained: the model's shape, the sequence length, the global batch, the method.

Does not know what it runs on. A preset is read without transformers; a folder or a Hugging Face id
is read by transformers' own `AutoConfig`, which knows each architecture's defaults.
"""

from __future__ import annotations

import difflib
import json
import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from autotune.adapter_targets import ADAPTER_GROUPS, ALL_LINEAR, has_adapter, read_targets
from autotune.errors import ConfigError
from autotune.knobs import ModuleGroup
from autotune.presets import PRESETS

__all__ = ["Method", "ModelShape", "Workload", "load_model_shape"]

_PLAIN_MLP = {"opt", "gpt2", "gpt_neox", "gptj", "gpt_neo", "bloom", "falcon", "phi"}


class Method(StrEnum):
    """What is learned: all parameters, or adapters on a frozen base (4-bit for QLoRA)."""

    FULL = "full"
    LORA = "lora"
    QLORA = "qlora"


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelShape:
    """The numbers of an architecture that memory and time depend on.

    Parameter counts follow the published layer definitions; biases and positions are counted where
    the architecture has them. `tests/test_workload.py` holds them against built models.
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

    @property
    def has_gated_mlp(self) -> bool:
        """Whether the MLP has a gate beside up and down (SwiGLU, GeGLU)."""
        return self.model_type not in _PLAIN_MLP

    @property
    def attention_linears(self) -> dict[str, tuple[int, int]]:
        """The linear layers of one attention block, by name: (inputs, outputs)."""
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
        """The linear layers of one MLP, by name: (inputs, outputs)."""
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
        attention = sum(i * o for i, o in self.attention_linears.values())
        return attention + self.num_experts * sum(i * o for i, o in self.mlp_linears.values())

    @property
    def largest_weight(self) -> int:
        """Elements of the largest single parameter; a mixture's experts are one parameter."""
        linears = [*self.attention_linears.values(), *self.mlp_linears.values()]
        mlp = sum(i * o for i, o in self.mlp_linears.values())
        experts = mlp * self.num_experts if self.num_experts > 1 else 0
        embedding = self.vocab_size * max(self.hidden_size, self.embedding_size)
        return max(embedding, experts, *(i * o for i, o in linears))

    @property
    def linear_sides(self) -> int:
        """Rows and columns of the weights of all linear layers of the decoder blocks, added up."""
        attention = sum(i + o for i, o in self.attention_linears.values())
        mlp = sum(i + o for i, o in self.mlp_linears.values())
        return self.num_hidden_layers * (attention + self.num_experts * mlp)

    @property
    def parameters_per_layer(self) -> int:
        """All parameters of one decoder block."""
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
        """Of one norm: weights, and biases beside plain MLPs (LayerNorm)."""
        return self.hidden_size * (1 if self.has_gated_mlp else 2)

    @property
    def embedding_parameters(self) -> int:
        """The token embedding, with learned positions where the architecture has them."""
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
        return 0 if self.tie_word_embeddings else self.vocab_size * self.hidden_size

    @property
    def num_parameters(self) -> int:
        """All parameters, shared ones once."""
        return (
            self.embedding_parameters
            + self.num_hidden_layers * self.parameters_per_layer
            + self.norm_parameters
            + self.lm_head_parameters
        )

    @property
    def adapter_linears(self) -> dict[ModuleGroup, dict[str, tuple[int, int]]]:
        """The linear layers of one decoder block that can have adapters, by group and name.

        Not the experts of a mixture: transformers keeps their weights as one tensor, which is no
        linear layer.
        """
        return {
            ModuleGroup.ATTENTION: self.attention_linears,
            ModuleGroup.MLP: self.mlp_linears if self.num_experts == 1 else {},
        }

    def unknown_target(self, targets: tuple[str, ...]) -> str | None:
        """The first target of LoRA that this model has no layer for, in words."""
        groups = [group for group in ADAPTER_GROUPS if self.adapter_linears[group]]
        names = [name for group in groups for name in self.adapter_linears[group]]
        known = dict.fromkeys((ALL_LINEAR, *map(str, groups), *names))
        for target in targets:
            if target not in known:
                return (
                    f"{self.name} has no linear layer {target!r}; choose from {', '.join(known)}"
                )
        return None

    def num_lora_parameters(self, rank: int, targets: tuple[str, ...]) -> int:
        """Parameters of the adapters: rank x (inputs + outputs) for each target of each layer."""
        per_layer = sum(
            rank * (inputs + outputs)
            for group, linears in self.adapter_linears.items()
            for name, (inputs, outputs) in linears.items()
            if has_adapter(name, group, targets)
        )
        return self.num_hidden_layers * per_layer


@dataclass(frozen=True, kw_only=True, slots=True)
class Workload:
    """The training that a strategy is sought for.

    Raises:
        ConfigError: a length, a batch or LoRA settings that cannot be; the message names the flag.
    """

    model: ModelShape
    seq_len: int
    """Tokens of every sample; trials always run the longest sample."""
    global_batch_size: int
    """Samples of one optimizer step over all ranks."""
    method: Method = Method.FULL
    lora_rank: int = 16
    """Rank of the adapters where the method has any and the space does not search it."""
    lora_targets: tuple[str, ...] = (ALL_LINEAR,)

    def __post_init__(self) -> None:
        """Refuse what no strategy can train."""
        longest = self.model.max_position_embeddings
        if not 1 <= self.seq_len <= longest:
            raise ConfigError(
                f"--seq-len {self.seq_len}: {self.model.name} takes 1 to {longest} tokens; "
                f"choose --seq-len {longest} or less"
            )
        if self.global_batch_size < 1:
            raise ConfigError(f"--global-batch must be at least 1, got {self.global_batch_size}")
        if self.method is Method.FULL:
            return
        if self.lora_rank < 1:
            raise ConfigError(f"--lora-rank must be at least 1, got {self.lora_rank}")
        if not self.lora_targets:
            raise ConfigError(
                f"--lora-targets names no layer; give {ALL_LINEAR}, or names such as q_proj,v_proj"
            )
        unknown = self.model.unknown_target(self.lora_targets)
        if unknown:
            raise ConfigError(f"--lora-targets: {unknown}")

    @property
    def tokens_per_step(self) -> int:
        """Tokens of one optimizer step over all ranks."""
        return self.seq_len * self.global_batch_size

    def adapter_targets(self, lora_targets: str) -> tuple[str, ...]:
        """The targets that a strategy's `lora_targets` stands for."""
        return read_targets(lora_targets) or self.lora_targets

    def num_trainable_parameters(self, lora_rank: int, lora_targets: str = "") -> int:
        """Parameters that the optimizer sees.

        Args:
            lora_rank: rank of the adapters; 0 stands for full fine-tuning.
            lora_targets: the strategy's, as text; empty for the workload's own.
        """
        if lora_rank == 0:
            return self.model.num_parameters
        return self.model.num_lora_parameters(lora_rank, self.adapter_targets(lora_targets))

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON values; `from_dict` reads it back."""
        record: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return record

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> Workload:
        """Read back what `to_dict` wrote.

        Raises:
            ConfigError: a key is missing or has a value of the wrong kind.
        """
        try:
            model = ModelShape(**record["model"])
            rest = {key: value for key, value in record.items() if key != "model"}
            rest["method"] = Method(rest["method"])
            rest["lora_targets"] = tuple(rest["lora_targets"])
            return cls(model=model, **rest)
        except (KeyError, TypeError) as error:
            raise ConfigError(f"this is no workload of autotune: {error}") from error


def load_model_shape(name: str, *, trust_remote_code: bool = False) -> ModelShape:
    """Read a preset, a local folder with config.json, or a Hugging Face id, in this order.

    Args:
        name: what the user gave to --model.
        trust_remote_code: allow the model's own Python code to run.

    Raises:
        ConfigError: there is no such model, or its configuration cannot be read.
    """
    if name in PRESETS:
        return _shape_of(name, PRESETS[name].config, source=None)
    folder = Path(name)
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise ConfigError(f"--model {name}: the folder has no config.json")
    elif name.count("/") != 1 or name.startswith((".", "/", "~")):
        near = difflib.get_close_matches(name, PRESETS, n=1, cutoff=0.4)
        hint = f"did you mean {near[0]}? " if near else ""
        raise ConfigError(
            f"--model {name}: no such preset or folder. {hint}Presets: {', '.join(PRESETS)}; "
            "or a local folder with config.json, or a Hugging Face id such as org/name"
        )
    config = _read_config(name, trust_remote_code)
    has_own_code = trust_remote_code and "auto_map" in config
    return _shape_of(name, config, source=name if has_own_code else None)


def _read_config(name: str, trust_remote_code: bool) -> dict[str, Any]:
    """The whole configuration of a folder or a Hugging Face id, defaults filled in."""
    from transformers import AutoConfig

    if Path(name).is_dir():
        try:
            raw = json.loads((Path(name) / "config.json").read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ConfigError(f"--model {name}: config.json cannot be read: {error}") from error
        if not isinstance(raw, dict) or "model_type" not in raw:
            raise ConfigError(f"--model {name}: config.json names no model_type")
        if "auto_map" in raw and not trust_remote_code:
            raw.pop("auto_map")
    # It would tell of every attempt to connect, in lines of its own.
    hub = logging.getLogger("huggingface_hub")
    level = hub.level
    hub.setLevel(logging.ERROR)
    try:
        config = AutoConfig.from_pretrained(name, trust_remote_code=trust_remote_code)
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ConfigError(f"--model {name}: its configuration cannot be read: {reason}") from error
    finally:
        hub.setLevel(level)
    record: dict[str, Any] = json.loads(config.to_json_string(use_diff=False))
    # Names that an architecture keeps under its own words, under the common ones too.
    for common in ("hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size"):
        record.setdefault(common, getattr(config, common, None))
    record.setdefault("max_position_embeddings", getattr(config, "max_position_embeddings", None))
    return record


def _shape_of(name: str, config: Mapping[str, Any], source: str | None) -> ModelShape:
    """Take the numbers out of a configuration."""
    try:
        hidden, heads = int(config["hidden_size"]), int(config["num_attention_heads"])
        kv_heads = config.get("num_key_value_heads") or heads
        width = next(
            (
                config[key]
                for key in ("intermediate_size", "ffn_dim", "n_inner")
                if config.get(key)
            ),
            4 * hidden,
        )
        return ModelShape(
            name=name,
            model_type=str(config["model_type"]),
            hidden_size=hidden,
            intermediate_size=int(width),
            num_hidden_layers=int(config["num_hidden_layers"]),
            num_attention_heads=heads,
            num_key_value_heads=int(kv_heads),
            head_dim=int(config.get("head_dim") or hidden // heads),
            vocab_size=int(config["vocab_size"]),
            max_position_embeddings=int(config.get("max_position_embeddings") or 2**31),
            tie_word_embeddings=bool(config.get("tie_word_embeddings", False)),
            embedding_size=int(config.get("word_embed_proj_dim") or hidden),
            num_experts=int(config.get("num_local_experts") or 1),
            config=dict(config),
            source=source,
        )
    except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
        raise ConfigError(
            f"--model {name}: not a decoder-only language model that autotune knows: "
            f"its configuration lacks or misstates {error}"
        ) from error
