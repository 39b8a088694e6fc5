"""A strategy: every knob of one training run.

Refuses what contradicts itself. Whether it suits a model and a machine is `compatibility`'s
question; where it came from is nobody's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from enum import StrEnum
from operator import attrgetter
from typing import Any, get_type_hints

from autotune.errors import ConfigError
from autotune.knob_values import (
    DEFAULT_BUCKET_SIZE,
    PARALLEL_DEGREES,
    Attention,
    CheckpointScope,
    GroupPrecision,
    LossClass,
    MasterWeights,
    ModuleGroup,
    Offload,
    Optimizer,
    Precision,
)
from autotune.space.contradictions import contradiction
from autotune.space.optimizers import OPTIMIZERS

__all__ = ["KNOBS", "LOSS_CLASSES", "Strategy", "read_knob"]


def _neutral(*, at_least: int = 1) -> dict[str, Any]:
    """Of a knob that leaves what is learned as it is: its loss class, and its least number."""
    return {"loss": LossClass.NEUTRAL, "at_least": at_least}


def _changing(*, at_least: int = 1) -> dict[str, Any]:
    """Of a knob that can change what is learned."""
    return {"loss": LossClass.CHANGING, "at_least": at_least}


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

    zero_stage: int = field(default=0, metadata=_neutral(at_least=0))
    """What ZeRO divides over ranks: 1 optimizer states, 2 also gradients, 3 also parameters."""
    tensor_parallel_size: int = field(default=1, metadata=_neutral())
    """Ranks over which each matrix product is divided."""
    pipeline_parallel_size: int = field(default=1, metadata=_neutral())
    """Stages of consecutive layers, each on ranks of its own."""
    sequence_parallel_size: int = field(default=1, metadata=_neutral())
    """Ranks over which the tokens of a sample are divided (Ulysses)."""
    offload_optimizer: Offload = field(default=Offload.NONE, metadata=_neutral())
    """Where optimizer states and master weights live."""
    offload_ratio: float = field(default=1.0, metadata=_neutral(at_least=0))
    """The part of them that is offloaded; the rest is updated on the device."""
    offload_param: Offload = field(default=Offload.NONE, metadata=_neutral())
    """Where the weights live that are not at work just now (ZeRO-3)."""
    micro_batch_size: int = field(default=1, metadata=_neutral())
    """Samples of one forward on one rank."""
    checkpoint_interval: int = field(default=0, metadata=_neutral(at_least=0))
    """Keep the input of every k-th decoder layer, recompute between; 0 keeps all activations."""
    checkpoint_scope: CheckpointScope = field(default=CheckpointScope.LAYER, metadata=_neutral())
    """What is recomputed: whole layers, or only the attention or the MLP of each."""
    offload_checkpoints: Offload = field(default=Offload.NONE, metadata=_neutral())
    """Where the kept inputs wait for backward."""
    mlp_tiles: int = field(default=1, metadata=_neutral())
    """Pieces along the tokens in which each MLP is computed, one after the other."""
    loss_tiles: int = field(default=1, metadata=_neutral())
    """Pieces along the tokens in which logits and loss are computed."""
    optimizer: Optimizer = field(default=Optimizer.ADAMW, metadata=_changing())
    precision: Precision = field(default=Precision.BF16, metadata=_changing())
    embedding_precision: GroupPrecision = field(default=GroupPrecision.SAME, metadata=_changing())
    attention_precision: GroupPrecision = field(default=GroupPrecision.SAME, metadata=_changing())
    mlp_precision: GroupPrecision = field(default=GroupPrecision.SAME, metadata=_changing())
    norm_precision: GroupPrecision = field(default=GroupPrecision.SAME, metadata=_changing())
    lm_head_precision: GroupPrecision = field(default=GroupPrecision.SAME, metadata=_changing())
    master_weights: MasterWeights = field(default=MasterWeights.FP32, metadata=_changing())
    tf32: bool = field(default=False, metadata=_changing())
    """Whether fp32 matrix products use TensorFloat-32."""
    reduce_bucket_size: int = field(default=DEFAULT_BUCKET_SIZE, metadata=_neutral())
    """Elements that travel together; DeepSpeed's default."""
    overlap_comm: bool = field(default=True, metadata=_neutral())
    """Whether gradients are reduced while backward goes on."""
    zero_quantized_weights: bool = field(default=False, metadata=_changing())
    """ZeRO++: gather weights in 8 bit."""
    zero_quantized_gradients: bool = field(default=False, metadata=_changing())
    """ZeRO++: reduce gradients in 4 bit."""
    zero_hpz_partition_size: int = field(default=1, metadata=_neutral())
    """ZeRO++: ranks that keep a second, whole copy of the weights among them; 1 keeps none."""
    fused_kernels: bool = field(default=False, metadata=_neutral())
    """Liger's fused kernels: norm, rotary, SwiGLU, and linear + cross-entropy without logits."""
    attention: Attention = field(default=Attention.SDPA, metadata=_neutral())
    torch_compile: bool = field(default=False, metadata=_neutral())
    """Whether `torch.compile` compiles the decoder layers."""
    lora_rank: int = field(default=0, metadata=_changing(at_least=0))
    """Rank of the LoRA adapters; 0 trains all parameters."""
    lora_alpha: int = field(default=0, metadata=_changing(at_least=0))
    """Their output is scaled by alpha / rank; 0 stands for twice the rank."""
    lora_targets: str = field(default="", metadata=_changing())
    """Linear layers that have adapters: `all-linear`, `attention`, `mlp`, or names with commas
    between them; empty for what --lora-targets says."""

    def __post_init__(self) -> None:
        """Refuse knobs out of their range, and knobs that contradict each other."""
        for name in _NUMBERS:
            _check_range(name, getattr(self, name))
        words = contradiction(self)
        if words:
            raise ConfigError(words)

    def __hash__(self) -> int:
        """Of all knobs, worked out once."""
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
        places = (self.offload_optimizer, self.offload_param, self.offload_checkpoints)
        is_paged = OPTIMIZERS[self.optimizer].is_paged
        return is_paged or any(place is not Offload.NONE for place in places)

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
            if loss_class is LossClass.CHANGING and getattr(self, knob) != getattr(reference, knob)
        )
        return LossClass.NEUTRAL if next(changed, None) is None else LossClass.CHANGING

    def __str__(self) -> str:
        """In words, for a table row: what always matters, and what is not at its default."""
        return ", ".join(_words(self))

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


def _words(s: Strategy) -> list[str]:
    words = [f"ZeRO-{s.zero_stage}", f"micro-batch {s.micro_batch_size}"]
    words += [
        f"{knob.removesuffix('_size').replace('_', ' ')} {degree}"
        for knob in PARALLEL_DEGREES
        if (degree := getattr(s, knob)) > 1
    ]
    if s.checkpoint_scope is not CheckpointScope.LAYER:
        words.append(f"checkpoint {s.checkpoint_scope}")
    elif s.checkpoint_interval == 1:
        words.append("checkpoint every layer")
    elif s.checkpoint_interval:
        words.append(f"checkpoint every {s.checkpoint_interval} layers")
    if s.mlp_tiles > 1:
        words.append(f"MLP in {s.mlp_tiles} tiles")
    if s.loss_tiles > 1:
        words.append(f"loss in {s.loss_tiles} tiles")
    words.append(str(s.optimizer))
    if s.master_weights is MasterWeights.BF16:
        words.append("bf16 master")
    words.append(str(s.precision))
    words += [
        f"{group} {own}"
        for group in ModuleGroup
        if (own := s.precision_of(group)) != GroupPrecision(s.precision)
    ]
    if s.tf32:
        words.append("TF32")
    if s.fused_kernels:
        words.append("fused kernels")
    if s.attention is not Attention.SDPA:
        words.append(f"{s.attention} attention")
    if s.torch_compile:
        words.append("compiled")
    for part in ("checkpoints", "param", "optimizer"):
        place = getattr(s, f"offload_{part}")
        if place is not Offload.NONE:
            share = f"{s.offload_ratio:.0%} of " if s.offload_ratio < 1 and part[0] == "o" else ""
            words.append(f"{share}{part.replace('param', 'parameters')} on {place}")
    if s.reduce_bucket_size != DEFAULT_BUCKET_SIZE:
        words.append(f"buckets of {s.reduce_bucket_size:,}")
    if not s.overlap_comm:
        words.append("no overlap")
    if s.zero_quantized_weights:
        words.append("quantized weights")
    if s.zero_quantized_gradients:
        words.append("quantized gradients")
    if s.zero_hpz_partition_size > 1:
        words.append(f"hpZ {s.zero_hpz_partition_size}")
    if s.lora_rank:
        alpha = f" alpha={s.lora_alpha}" if s.lora_alpha else ""
        targets = f" on {s.lora_targets}" if s.lora_targets else ""
        words.append(f"LoRA r={s.lora_rank}{alpha}{targets}")
    return words


KNOBS: tuple[str, ...] = tuple(knob.name for knob in fields(Strategy))
_all_knobs = attrgetter(*KNOBS)
"""The names of all knobs, in the order in which a sampler decides them."""

LOSS_CLASSES: dict[str, LossClass] = {
    knob.name: knob.metadata["loss"] for knob in fields(Strategy)
}
"""Whether each knob can change what is learned."""

_KINDS: dict[str, type] = {
    name: kind for name, kind in get_type_hints(Strategy).items() if name in KNOBS
}
_NUMBERS: tuple[str, ...] = tuple(name for name, kind in _KINDS.items() if kind in (int, float))
_GROUP_KNOBS = {group: f"{group}_precision" for group in ModuleGroup}
_GROUP_PRECISIONS = {precision: GroupPrecision(precision) for precision in Precision}
_AT_LEAST: dict[str, int] = {knob.name: knob.metadata["at_least"] for knob in fields(Strategy)}


def _check_range(name: str, value: Any) -> None:
    """Raises ConfigError for a number outside the range of its knob."""
    least = _AT_LEAST[name]
    if name == "zero_stage" and value not in (0, 1, 2, 3):
        raise ConfigError(f"zero_stage must be 0, 1, 2 or 3, got {value}")
    if name == "offload_ratio" and not 0 < value <= 1:
        raise ConfigError(f"offload_ratio must be above 0 and at most 1, got {value}")
    if value < least:
        range_ = "0 or more" if least == 0 else f"at least {least}"
        raise ConfigError(f"{name} must be {range_}, got {value}")


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
