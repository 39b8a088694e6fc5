"""One point of the search: every knob of one training run.

Refuses what contradicts itself. Whether it suits a model and a machine is `compatibility.py`'s
question; where it came from is nobody's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from enum import StrEnum
from typing import Any

from autotune.errors import ConfigError

__all__ = [
    "KNOBS",
    "LOSS_CLASSES",
    "LossClass",
    "MasterWeights",
    "Offload",
    "Optimizer",
    "Precision",
    "Strategy",
    "read_knob",
]


class LossClass(StrEnum):
    """Whether a knob can change what is learned."""

    NEUTRAL = "neutral"
    CHANGING = "changing"


class Offload(StrEnum):
    """Where a part of the training state is kept."""

    NONE = "none"
    CPU = "cpu"


class Optimizer(StrEnum):
    """The optimizer's algorithm and the form of its states."""

    ADAMW = "adamw"
    ADAMW_8BIT = "adamw_8bit"
    LION = "lion"
    LION_8BIT = "lion_8bit"
    SGD = "sgd"
    """With momentum."""
    ADAFACTOR = "adafactor"


class MasterWeights(StrEnum):
    """The precision of the weights that the optimizer updates, and of AdamW's states with them."""

    FP32 = "fp32"
    BF16 = "bf16"


class Precision(StrEnum):
    """The precision of forward and backward."""

    BF16 = "bf16"
    FP16 = "fp16"
    FP32 = "fp32"


@dataclass(frozen=True, kw_only=True, slots=True)
class Strategy:
    """How one run trains.

    Raises:
        ConfigError: the knobs contradict each other; the message says which and what to do.
    """

    zero_stage: int = 0
    """What ZeRO divides over ranks: 1 optimizer states, 2 also gradients, 3 also parameters."""
    offload_optimizer: Offload = Offload.NONE
    """Where optimizer states and master weights live."""
    micro_batch_size: int = 1
    """Samples of one forward on one rank."""
    checkpoint_interval: int = 0
    """Keep the input of every k-th decoder layer, recompute between; 0 keeps all activations."""
    precision: Precision = Precision.BF16
    optimizer: Optimizer = Optimizer.ADAMW
    master_weights: MasterWeights = MasterWeights.FP32
    fused_kernels: bool = False
    """Liger's fused kernels: norm, rotary, SwiGLU, and linear + cross-entropy without logits."""
    lora_rank: int = 0
    """Rank of the LoRA adapters; 0 trains all parameters."""

    def __post_init__(self) -> None:
        """Refuse knobs that contradict each other."""
        if self.zero_stage not in (0, 1, 2, 3):
            raise ConfigError(f"zero_stage must be 0, 1, 2 or 3, got {self.zero_stage}")
        if self.micro_batch_size < 1:
            raise ConfigError(f"micro_batch_size must be at least 1, got {self.micro_batch_size}")
        if self.checkpoint_interval < 0:
            raise ConfigError(
                f"checkpoint_interval must be 0 or more, got {self.checkpoint_interval}"
            )
        if self.lora_rank < 0:
            raise ConfigError(f"lora_rank must be 0 or more, got {self.lora_rank}")
        if self.offload_optimizer is not Offload.NONE and self.zero_stage == 0:
            raise ConfigError("offload_optimizer needs zero_stage 1, 2 or 3, got 0")
        if self.offload_optimizer is not Offload.NONE and self.optimizer is not Optimizer.ADAMW:
            raise ConfigError(
                f"offload_optimizer needs optimizer adamw (CPU Adam), got {self.optimizer}"
            )
        if self.optimizer is Optimizer.ADAFACTOR and self.zero_stage > 0:
            raise ConfigError(
                f"optimizer adafactor needs zero_stage 0, got {self.zero_stage}: ZeRO hands the "
                "optimizer flat partitions, whose second moment cannot be factored"
            )
        if self.master_weights is MasterWeights.BF16:
            if self.precision is not Precision.BF16:
                raise ConfigError(
                    f"master_weights bf16 needs precision bf16, got {self.precision}"
                )
            if self.zero_stage == 0:
                raise ConfigError("master_weights bf16 needs zero_stage 1, 2 or 3, got 0")

    def gradient_accumulation_steps(self, global_batch_size: int, data_parallel_size: int) -> int:
        """Micro-batches of one optimizer step; 0 where the global batch cannot be divided so."""
        samples = self.micro_batch_size * data_parallel_size
        return 0 if global_batch_size % samples else global_batch_size // samples

    def loss_class(self, reference: Strategy) -> LossClass:
        """Neutral where every knob that can change what is learned stands as in `reference`."""
        changed = (
            knob
            for knob, loss_class in LOSS_CLASSES.items()
            if loss_class is LossClass.CHANGING and getattr(self, knob) != getattr(reference, knob)
        )
        return LossClass.NEUTRAL if next(changed, None) is None else LossClass.CHANGING

    def __str__(self) -> str:
        """In words, for a table row."""
        words = [f"ZeRO-{self.zero_stage}", f"micro-batch {self.micro_batch_size}"]
        if self.checkpoint_interval == 1:
            words.append("checkpoint every layer")
        elif self.checkpoint_interval:
            words.append(f"checkpoint every {self.checkpoint_interval} layers")
        words.append(str(self.optimizer))
        if self.master_weights is MasterWeights.BF16:
            words.append("bf16 master")
        words.append(str(self.precision))
        if self.fused_kernels:
            words.append("fused kernels")
        if self.offload_optimizer is not Offload.NONE:
            words.append(f"optimizer on {self.offload_optimizer}")
        if self.lora_rank:
            words.append(f"LoRA r={self.lora_rank}")
        return ", ".join(words)

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON values; `from_dict` reads it back."""
        return {
            name: str(value) if isinstance(value, StrEnum) else value
            for name, value in asdict(self).items()
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
            values[name] = read_knob(name, value)
        return cls(**values)


_KINDS: dict[str, type] = {
    "offload_optimizer": Offload,
    "optimizer": Optimizer,
    "master_weights": MasterWeights,
    "precision": Precision,
    "fused_kernels": bool,
}

KNOBS: tuple[str, ...] = tuple(field.name for field in fields(Strategy))
"""The names of all knobs, in the order in which a sampler decides them."""

LOSS_CLASSES: dict[str, LossClass] = {
    "zero_stage": LossClass.NEUTRAL,
    "offload_optimizer": LossClass.NEUTRAL,
    "micro_batch_size": LossClass.NEUTRAL,
    "checkpoint_interval": LossClass.NEUTRAL,
    "precision": LossClass.CHANGING,
    "optimizer": LossClass.CHANGING,
    "master_weights": LossClass.CHANGING,
    "fused_kernels": LossClass.NEUTRAL,
    "lora_rank": LossClass.CHANGING,
}
"""Whether each knob can change what is learned."""


def read_knob(name: str, value: object) -> Any:
    """One value of one knob, of its proper kind.

    Raises:
        ConfigError: the knob does not take this value; the message says what it takes.
    """
    kind = _KINDS.get(name, int)
    if kind is bool:
        if isinstance(value, bool):
            return value
        raise ConfigError(f"{name} takes true or false, got {value!r}")
    if kind is int:
        is_bool = isinstance(value, bool)
        if is_bool or not isinstance(value, int | float) or not float(value).is_integer():
            raise ConfigError(f"{name} takes whole numbers, got {value!r}")
        return int(value)
    try:
        return kind(value)
    except ValueError:
        choices = ", ".join(str(member) for member in kind)  # type: ignore[attr-defined]
        raise ConfigError(f"{name} takes one of {choices}; got {value!r}") from None
