"""A strategy: every knob of one training run.

Refuses what contradicts itself. Whether it suits a model and a machine is `compatibility`'s
question; where it came from is nobody's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from enum import StrEnum
from functools import partial
from operator import attrgetter
from typing import Any, get_type_hints

from autotune.errors import ConfigError
from autotune.knob_values import (
    DEFAULT_BUCKET_SIZE,
    Attention,
    Batching,
    CheckpointScope,
    Experts,
    GroupPrecision,
    LossClass,
    MasterWeights,
    ModuleGroup,
    Offload,
    Optimizer,
    Precision,
)
from autotune.space.contradictions import CONTRADICTIONS
from autotune.space.knob import KnobFacts, Needs, facts_of, knob
from autotune.space.optimizers import OPTIMIZERS

__all__ = ["FACTS", "KNOBS", "LOSS_CLASSES", "RULES", "Strategy", "read_knob"]


_IN_JSON = "in ds_config.json"
_IN_GROUP = "autotune.apply"

_NEUTRAL, _CHANGING = LossClass.NEUTRAL, LossClass.CHANGING

_NEEDS_ZERO = Needs(knob="zero_stage", values=(1, 2, 3))
_NEEDS_ZERO3 = Needs(knob="zero_stage", values=(3,))


class _HashedOnce:
    """Has room for its hash: a strategy is looked up among all that were tried at every ask."""

    __slots__ = ("_hash",)

    _hash: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Strategy(_HashedOnce):
    """How one run trains.

    The knobs stand in the order in which a sampler decides them.

    Raises:
        ConfigError: the knobs contradict each other; the message says which and what to do.
    """

    zero_stage: int = knob(
        0,
        loss=_NEUTRAL,
        comment=_IN_JSON,
        least=0,
        numbers=(0, 1, 2, 3),
        word=lambda s: f"Z{s.zero_stage}",
    )
    """What ZeRO divides over ranks: 1 optimizer states, 2 also gradients, 3 also parameters."""
    tensor_parallel_size: int = knob(1, loss=_NEUTRAL, comment=_IN_JSON, word="tp{}")
    """Ranks over which each matrix product is divided."""
    pipeline_parallel_size: int = knob(
        1,
        loss=_NEUTRAL,
        comment="autotune.pipeline: stages of consecutive layers",
        word="pp{}",
    )
    """Stages of consecutive layers, each on ranks of its own."""
    sequence_parallel_size: int = knob(
        1,
        loss=_NEUTRAL,
        comment="autotune.apply and autotune.shard_batch",
        word="sp{}",
    )
    """Ranks over which the tokens of a sample are divided (Ulysses)."""
    offload_optimizer: Offload = knob(
        Offload.NONE,
        loss=_NEUTRAL,
        comment=_IN_JSON,
        word=lambda s: _offloaded_optimizer(s),
        needs=(_NEEDS_ZERO,),
    )
    """Where optimizer states and master weights live."""
    offload_ratio: float = knob(1.0, loss=_NEUTRAL, comment=_IN_JSON, least=0)
    """The part of them that is offloaded; the rest is updated on the device."""
    offload_param: Offload = knob(
        Offload.NONE, loss=_NEUTRAL, comment=_IN_JSON, word="param@{}", needs=(_NEEDS_ZERO3,)
    )
    """Where the weights live that are not at work just now (ZeRO-3)."""
    micro_batch_size: int = knob(
        1, loss=_NEUTRAL, comment=_IN_JSON, word=lambda s: f"mb{s.micro_batch_size}"
    )
    """Samples of one forward on one rank."""
    checkpoint_interval: int = knob(
        0,
        loss=_NEUTRAL,
        comment="autotune.apply: keep every k-th layer's input; 0 keeps all",
        least=0,
        word=lambda s: _checkpoints(s),
    )
    """Keep the input of every k-th decoder layer, recompute between; 0 keeps all activations."""
    checkpoint_scope: CheckpointScope = knob(
        CheckpointScope.LAYER,
        loss=_NEUTRAL,
        comment="autotune.apply: what is recomputed: layer, attention or mlp",
    )
    """What is recomputed: whole layers, or only the attention or the MLP of each."""
    offload_checkpoints: Offload = knob(
        Offload.NONE,
        loss=_NEUTRAL,
        comment="autotune.apply: where the kept inputs wait",
        word="ckpt@{}",
    )
    """Where the kept inputs wait for backward."""
    mlp_tiles: int = knob(
        1,
        loss=_NEUTRAL,
        comment="autotune.apply: pieces of each MLP, one after the other",
        word="mlp-tiles{}",
    )
    """Pieces along the tokens in which each MLP is computed, one after the other."""
    loss_tiles: int = knob(
        1,
        loss=_NEUTRAL,
        comment="autotune.apply: pieces of logits and loss",
        word="loss-tiles{}",
    )
    """Pieces along the tokens in which logits and loss are computed."""
    optimizer: Optimizer = knob(
        Optimizer.ADAMW,
        loss=_CHANGING,
        comment="in ds_config.json, else autotune.create_optimizer; 8-bit ones keep embeddings "
        "in 32 bit only with zero_stage 0",
        word="{}",
    )
    precision: Precision = knob(
        Precision.BF16,
        loss=_CHANGING,
        comment="in ds_config.json; load the model in it too",
        word="{}",
    )
    embedding_precision: GroupPrecision = knob(
        GroupPrecision.SAME, loss=_CHANGING, comment=_IN_GROUP, word="embedding={}"
    )
    attention_precision: GroupPrecision = knob(
        GroupPrecision.SAME, loss=_CHANGING, comment=_IN_GROUP, word="attention={}"
    )
    mlp_precision: GroupPrecision = knob(
        GroupPrecision.SAME, loss=_CHANGING, comment=_IN_GROUP, word="mlp={}"
    )
    norm_precision: GroupPrecision = knob(
        GroupPrecision.SAME, loss=_CHANGING, comment=_IN_GROUP, word="norm={}"
    )
    lm_head_precision: GroupPrecision = knob(
        GroupPrecision.SAME, loss=_CHANGING, comment=_IN_GROUP, word="head={}"
    )
    master_weights: MasterWeights = knob(
        MasterWeights.FP32,
        loss=_CHANGING,
        comment=_IN_JSON,
        word="master={}",
        needs=(Needs(knob="precision", values=(Precision.BF16,)), _NEEDS_ZERO),
    )
    tf32: bool = knob(
        False,
        loss=_CHANGING,
        comment="autotune.apply: TensorFloat-32 for fp32 matrix products",
        word="tf32",
    )
    """Whether fp32 matrix products use TensorFloat-32."""
    reduce_bucket_size: int = knob(
        DEFAULT_BUCKET_SIZE,
        loss=_NEUTRAL,
        comment=_IN_JSON,
        word=lambda s: f"bucket{s.reduce_bucket_size / 1e6:.3g}M",
        needs=(_NEEDS_ZERO,),
    )
    """Elements that travel together; DeepSpeed's default."""
    overlap_comm: bool = knob(
        True,
        loss=_NEUTRAL,
        comment=_IN_JSON,
        word="no-overlap",
        needs=(
            Needs(knob="zero_stage", values=(1, 2, 3), because="DeepSpeed overlaps ZeRO only"),
            Needs(
                knob="pipeline_parallel_size",
                values=(1,),
                because="DeepSpeed overlaps no gradients of a pipeline",
            ),
        ),
    )
    """Whether gradients are reduced while backward goes on."""
    zero_quantized_weights: bool = knob(
        False, loss=_CHANGING, comment=_IN_JSON, word="q-weights", needs=(_NEEDS_ZERO3,)
    )
    """ZeRO++: gather weights in 8 bit."""
    zero_quantized_gradients: bool = knob(
        False, loss=_CHANGING, comment=_IN_JSON, word="q-gradients", needs=(_NEEDS_ZERO3,)
    )
    """ZeRO++: reduce gradients in 4 bit."""
    zero_hpz_partition_size: int = knob(
        1, loss=_NEUTRAL, comment=_IN_JSON, word="hpz{}", needs=(_NEEDS_ZERO3,)
    )
    """ZeRO++: ranks that keep a second, whole copy of the weights among them; 1 keeps none."""
    fused_kernels: bool = knob(
        False, loss=_NEUTRAL, comment="autotune.apply: Liger's kernels", word="liger"
    )
    """Liger's fused kernels: norm, rotary, SwiGLU, and linear + cross-entropy without logits."""
    attention: Attention = knob(
        Attention.SDPA,
        loss=_NEUTRAL,
        comment="autotune.apply: transformers' attn_implementation",
        word="{}",
    )
    batching: Batching = knob(
        Batching.PADDED,
        loss=_NEUTRAL,
        changing_values=(Batching.PACKED,),
        comment="your collator, and autotune.apply",
        word="{}",
        needs=(
            Needs(
                knob="attention",
                values=(Attention.SDPA, Attention.FLASH),
                because="eager attention takes no bounds of samples",
            ),
            Needs(
                knob="pipeline_parallel_size",
                values=(1,),
                because="DeepSpeed's stages exchange tensors of one shape",
            ),
            Needs(
                knob="sequence_parallel_size",
                values=(1,),
                because="Ulysses divides a sample's tokens, not joined samples",
            ),
        ),
    )
    """How samples of different lengths become a micro-batch."""
    torch_compile: bool = knob(
        False,
        loss=_NEUTRAL,
        comment="autotune.apply: compiles the decoder layers",
        word="compile",
    )
    """Whether `torch.compile` compiles the decoder layers."""
    experts_implementation: Experts = knob(
        Experts.GROUPED_MM,
        loss=_NEUTRAL,
        comment="autotune.apply: how routed experts are computed",
        word="experts={}",
    )
    """How the routed experts of a mixture are computed; of no meaning for dense models."""
    lora_rank: int = knob(
        0,
        loss=_CHANGING,
        comment="autotune.apply: PEFT adapters; 0 trains all",
        least=0,
        # Nothing else limits it: a larger rank than any matrix has.
        most=2**16,
        word="lora{}",
    )
    """Rank of the LoRA adapters; 0 trains all parameters."""
    lora_alpha: int = knob(
        0,
        loss=_CHANGING,
        comment="autotune.apply: scale of the adapters; 0 is twice the rank",
        least=0,
        word="alpha{}",
    )
    """Their output is scaled by alpha / rank; 0 stands for twice the rank."""
    lora_targets: str = knob(
        "",
        loss=_CHANGING,
        comment="autotune.apply: linear layers with adapters",
        word="on:{}",
    )
    """Linear layers that have adapters: `all-linear`, `attention`, `mlp`, or names with commas
    between them; empty for what --lora-targets says."""

    def __post_init__(self) -> None:
        """Refuse knobs out of their range, and knobs that contradict each other."""
        for name in _NUMBERS:
            _check_range(name, getattr(self, name))
        words = next((words for rule in RULES if (words := rule(self))), None)
        if words:
            raise ConfigError(words)

    def __hash__(self) -> int:
        """Hash of all knobs, computed once."""
        try:
            return self._hash
        except AttributeError:
            value = hash(_all_knobs(self))
            object.__setattr__(self, "_hash", value)
            return value

    @property
    def model_parallel_size(self) -> int:
        """Ranks that work on the same samples."""
        return (
            self.tensor_parallel_size * self.pipeline_parallel_size * self.sequence_parallel_size
        )

    @property
    def uses_nvme(self) -> bool:
        """Whether anything is kept in files under --nvme-path."""
        return Offload.NVME in (self.offload_optimizer, self.offload_param)

    @property
    def uses_host(self) -> bool:
        """Whether it works in memory of the host, or through it, in every step."""
        destinations = (self.offload_optimizer, self.offload_param, self.offload_checkpoints)
        is_paged = OPTIMIZERS[self.optimizer].is_paged
        return is_paged or any(each is not Offload.NONE for each in destinations)

    def data_parallel_size(self, num_ranks: int) -> int:
        """Groups of ranks with samples of their own; 0 where the ranks cannot be so divided."""
        return 0 if num_ranks % self.model_parallel_size else num_ranks // self.model_parallel_size

    def gradient_accumulation_steps(self, global_batch_size: int, num_ranks: int) -> int:
        """Micro-batches of one optimizer step; 0 where the global batch cannot be divided so."""
        samples = self.micro_batch_size * self.data_parallel_size(num_ranks)
        return 0 if not samples or global_batch_size % samples else global_batch_size // samples

    def precision_of(self, group: ModuleGroup) -> GroupPrecision:
        """The precision of one group of modules; never `same`."""
        own: GroupPrecision = getattr(self, _GROUP_KNOBS[group])
        return _GROUP_PRECISIONS[self.precision] if own is GroupPrecision.SAME else own

    def parameter_precision(self, group: ModuleGroup) -> Precision:
        """The precision in which a group keeps its weights: fp8 is of matrix products alone."""
        own = self.precision_of(group)
        return self.precision if own is GroupPrecision.FP8 else Precision(own)

    @property
    def has_group_precisions(self) -> bool:
        """Whether a group of modules computes in another precision than the rest."""
        common = _GROUP_PRECISIONS[self.precision]
        return any(self.precision_of(group) is not common for group in ModuleGroup)

    @property
    def parameter_precisions(self) -> frozenset[Precision]:
        """Every precision that weights are kept in, the residual stream's among them."""
        if not self.has_group_precisions:
            return frozenset({self.precision})
        return frozenset({self.precision, *map(self.parameter_precision, ModuleGroup)})

    @property
    def has_several_dtypes(self) -> bool:
        """Whether groups of modules keep their weights in different precisions."""
        return len(self.parameter_precisions) > 1

    @property
    def scales_own_loss(self) -> bool:
        """Whether the loss is scaled for fp16, and not by DeepSpeed: without ZeRO.

        There DeepSpeed 0.19.8 divides gradients by a loss scale that it did not multiply by.
        """
        return self.zero_stage == 0 and Precision.FP16 in self.parameter_precisions

    @property
    def is_bf16_pipeline(self) -> bool:
        """Whether a pipeline trains in bf16: without ZeRO, DeepSpeed's BF16_Optimizer does it."""
        return self.pipeline_parallel_size > 1 and self.precision is Precision.BF16

    def loss_class(self, reference: Strategy) -> LossClass:
        """Neutral where every knob that can change what is learned stands as in `reference`."""
        changed = (
            knob
            for knob, loss_class in LOSS_CLASSES.items()
            if getattr(self, knob) != getattr(reference, knob)
            and (loss_class is LossClass.CHANGING or self._is_changed_by(knob, reference))
        )
        return LossClass.NEUTRAL if next(changed, None) is None else LossClass.CHANGING

    def _is_changed_by(self, knob: str, reference: Strategy) -> bool:
        """Whether the knob has a value here or there that changes what is learned."""
        changing = FACTS[knob].changing_values
        return getattr(self, knob) in changing or getattr(reference, knob) in changing

    def __str__(self) -> str:
        """For a table row: ZeRO's stage, the micro-batch, and all that is not at its default.

        As `Z2 mb8 ckpt2 liger`; `knob.KnobFacts.word` is each knob's.
        """
        return " ".join(filter(None, (_word(self, name) for name in KNOBS)))

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON values; `from_dict` reads it back."""
        values = {name: getattr(self, name) for name in KNOBS}
        return {
            name: str(value) if isinstance(value, StrEnum) else value
            for name, value in values.items()
        }

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> Strategy:
        """Read back what `to_dict` wrote, or what a search space proposes.

        Raises:
            ConfigError: an unknown knob, or a value that the knob does not take.
        """
        values: dict[str, Any] = {}
        for name, value in record.items():
            if name not in KNOBS:
                raise ConfigError(f"there is no knob {name!r}; knobs are {', '.join(KNOBS)}")
            values[name] = _read(name, _KINDS[name], value)
        return cls(**values)


def _word(strategy: Strategy, name: str) -> str:
    word, value = FACTS[name].word, getattr(strategy, name)
    if callable(word):
        return word(strategy) if value != _DEFAULTS[name] or name in _ALWAYS_SAID else ""
    return "" if value == _DEFAULTS[name] else word.format(value)


def _checkpoints(strategy: Strategy) -> str:
    if strategy.checkpoint_scope is not CheckpointScope.LAYER:
        return f"ckpt-{strategy.checkpoint_scope}"
    return f"ckpt{strategy.checkpoint_interval}"


def _offloaded_optimizer(strategy: Strategy) -> str:
    part = f"{strategy.offload_ratio:.0%}" if strategy.offload_ratio < 1 else ""
    return f"optim{part}@{strategy.offload_optimizer}"


KNOBS: tuple[str, ...] = tuple(declared.name for declared in fields(Strategy))
"""The names of all knobs, in the order in which a sampler decides them."""

FACTS: Mapping[str, KnobFacts] = {
    declared.name: facts_of(declared) for declared in fields(Strategy)
}
"""What is declared of each knob."""

LOSS_CLASSES: Mapping[str, LossClass] = {name: facts.loss for name, facts in FACTS.items()}
"""Whether each knob can change what is learned."""

_ALWAYS_SAID = ("zero_stage", "micro_batch_size")
_DEFAULTS: dict[str, Any] = {declared.name: declared.default for declared in fields(Strategy)}
_all_knobs = attrgetter(*KNOBS)

_KINDS: dict[str, type] = {
    name: kind for name, kind in get_type_hints(Strategy).items() if name in KNOBS
}
_NUMBERS: tuple[str, ...] = tuple(name for name, kind in _KINDS.items() if kind in (int, float))
_GROUP_KNOBS = {group: f"{group}_precision" for group in ModuleGroup}
_GROUP_PRECISIONS = {precision: GroupPrecision(precision) for precision in Precision}


def _needs(name: str, strategy: Strategy) -> str | None:
    """What a knob needs of others, as far as it does not have it, in words."""
    value = getattr(strategy, name)
    if value == _DEFAULTS[name]:
        return None
    broken = (need.broken(name, value, getattr(strategy, need.knob)) for need in FACTS[name].needs)
    return next(filter(None, broken), None)


RULES: tuple[Callable[[Strategy], str | None], ...] = (
    *(partial(_needs, name) for name, facts in FACTS.items() if facts.needs),
    *CONTRADICTIONS,
)
"""Each answers in words which knobs contradict each other; None where it finds nothing."""


def _check_range(name: str, value: Any) -> None:
    """Raises ConfigError for a number outside the range of its knob."""
    words = FACTS[name].check_range(name, value)
    if name == "offload_ratio" and not 0 < value <= 1:
        words = f"offload_ratio must be above 0 and at most 1, got {value}"
    if words:
        raise ConfigError(words)


def read_knob(name: str, value: object) -> Any:
    """One value of one knob, of its proper kind and in its range.

    Raises:
        ConfigError: the knob does not take this value; the message says what it takes.
    """
    read = _read(name, _KINDS[name], value)
    if name in _NUMBERS:
        _check_range(name, read)
    return read


def _read(name: str, kind: type, value: object) -> Any:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if kind is bool:
        if isinstance(value, bool):
            return value
        raise ConfigError(f"{name} takes true or false, got {value!r}")
    if kind is int:
        if not is_number or not float(value).is_integer():  # type: ignore[arg-type]
            raise ConfigError(f"{name} takes whole numbers, got {value!r}")
        return int(value)  # type: ignore[call-overload]
    if kind is float:
        if not is_number:
            raise ConfigError(f"{name} takes numbers, got {value!r}")
        return float(value)  # type: ignore[arg-type]
    if kind is str:
        if not isinstance(value, str):
            raise ConfigError(f"{name} takes text, got {value!r}")
        return value
    try:
        return kind(value)
    except ValueError:
        choices = ", ".join(str(member) for member in kind)  # type: ignore[attr-defined]
        raise ConfigError(f"{name} takes one of {choices}; got {value!r}") from None
