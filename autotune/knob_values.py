"""The named values of knobs: one enumeration for each knob.

Does not know which of them go together.
"""

from __future__ import annotations

from enum import StrEnum

__all__ = [
    "DEFAULT_BUCKET_SIZE",
    "FP8_MULTIPLE",
    "PARALLEL_DEGREES",
    "Attention",
    "Batching",
    "CheckpointScope",
    "Experts",
    "GroupPrecision",
    "LossClass",
    "MasterWeights",
    "ModuleGroup",
    "Offload",
    "Optimizer",
    "Precision",
]

DEFAULT_BUCKET_SIZE = 500_000_000
"""Elements of a bucket, unless DeepSpeed is told otherwise."""

FP8_MULTIPLE = 16
"""Inner dimensions of 8-bit matrix products are multiples of this (cuBLASLt)."""

PARALLEL_DEGREES = (
    "tensor_parallel_size",
    "pipeline_parallel_size",
    "sequence_parallel_size",
)
"""The knobs that say how many ranks share the work on a sample."""


class LossClass(StrEnum):
    """Whether a knob can change what is learned."""

    NEUTRAL = "neutral"
    CHANGING = "changing"


class Offload(StrEnum):
    """Where a part of the training state is kept."""

    NONE = "none"
    """On the device."""
    CPU = "cpu"
    """In the host's memory."""
    NVME = "nvme"
    """In files under --nvme-path."""


class Batching(StrEnum):
    """How samples of different lengths become a micro-batch."""

    PADDED = "padded"
    """Each padded on the right to the longest of them."""
    PADDING_FREE = "padding_free"
    """One after the other in a single row, each with positions and attention of its own."""
    PACKED = "packed"
    """Sequences of `seq_len` tokens that samples fill; a step then has more samples."""


class CheckpointScope(StrEnum):
    """What is recomputed in backward of a layer that is checkpointed."""

    LAYER = "layer"
    ATTENTION = "attention"
    MLP = "mlp"


class Optimizer(StrEnum):
    """The optimizer's algorithm and the form of its states; `space/optimizers.py` has the facts.

    1-bit Adam is none of them: DeepSpeed 0.19.8 does not have it any more.
    """

    ADAMW = "adamw"
    ADAMW_8BIT = "adamw_8bit"
    """Embeddings' states stay in 32 bit with zero_stage 0. ZeRO flattens parameters, and so hides
    from bitsandbytes which is which: there all is in 8 bit. So it is with the other `_8bit`."""
    PAGED_ADAMW_8BIT = "paged_adamw_8bit"
    """Its states move to the host where the device is short of memory (CUDA's managed memory)."""
    LION = "lion"
    LION_8BIT = "lion_8bit"
    SGD = "sgd"
    """With momentum."""
    ADAFACTOR = "adafactor"
    MUON = "muon"
    """For matrices of the layers; AdamW for all else."""


class MasterWeights(StrEnum):
    """The precision of the weights that the optimizer updates, and of AdamW's states with them."""

    FP32 = "fp32"
    BF16 = "bf16"


class Precision(StrEnum):
    """The precision of forward and backward."""

    BF16 = "bf16"
    FP16 = "fp16"
    FP32 = "fp32"


class GroupPrecision(StrEnum):
    """The precision of one group of modules, where it is not that of all."""

    SAME = "same"
    """That of the knob `precision`."""
    BF16 = "bf16"
    FP16 = "fp16"
    FP32 = "fp32"
    FP8 = "fp8"
    """Matrix products in 8 bit; weights and all else as `precision` says."""


class ModuleGroup(StrEnum):
    """A group of modules that may have a precision of its own."""

    EMBEDDING = "embedding"
    ATTENTION = "attention"
    MLP = "mlp"
    NORM = "norm"
    LM_HEAD = "lm_head"


class Attention(StrEnum):
    """How attention is computed: transformers' names for its implementations."""

    SDPA = "sdpa"
    EAGER = "eager"
    FLASH = "flash_attention_2"


class Experts(StrEnum):
    """How the routed experts of a mixture are computed (transformers' experts_implementation)."""

    GROUPED_MM = "grouped_mm"
    """Tokens sorted by expert, one grouped product for all experts: transformers' default."""
    BATCHED_MM = "batched_mm"
    """A copy of the expert's weights for each token: for few tokens alone."""
    EAGER = "eager"
    """One expert after the other, on the tokens that it has."""
