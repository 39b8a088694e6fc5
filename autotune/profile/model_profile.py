"""A profile: what one token of a model holds and costs, layer by layer and part by part.

All bytes are of one token where nothing else is said. Plain values, to and from JSON. Does not
know how it was made.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

__all__ = ["PARTS", "LayerProfile", "MatMul", "ModelProfile", "PartWork", "Saved"]

PARTS = ("attention", "mlp", "norm", "rest")
"""Parts of a decoder layer; norms within an attention count as attention."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Saved:
    """Bytes that autograd keeps for the same parts of a layer."""

    parts: tuple[str, ...]
    """The parts that keep these bytes; a tensor that two parts keep is counted once."""
    input_of: tuple[str, ...]
    """Parts that they enter from outside, and so are there when the part is recomputed."""
    token_bytes: float


@dataclass(frozen=True, kw_only=True, slots=True)
class MatMul:
    """Matrix products of one shape: [m, k] by [k, n]."""

    m: int
    n: int
    k: int
    tokens_on: str
    """`m` or `k`, which grows with the number of tokens; `batch` where each token has its own."""
    count: int


@dataclass(frozen=True, kw_only=True, slots=True)
class PartWork:
    """What one part computes and moves in one direction, for all tokens that were traced."""

    matmuls: tuple[MatMul, ...] = ()
    attention_flops: float = 0.0
    """Operations of fused attention kernels; a causal kernel computes half the pairs."""
    traffic_bytes: int = 0
    """Bytes that all other kernels read and write."""
    num_kernels: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class LayerProfile:
    """What each decoder layer of one kind holds and computes; bytes are per token."""

    count: int
    """Layers of this kind in the whole model."""
    input_bytes: float
    saved: tuple[Saved, ...]
    lean: tuple[Saved, ...]
    """What autograd keeps where compiled code recomputes pointwise operations."""
    forward_peak: float
    """Largest number of live bytes in forward, beyond what this and all earlier layers keep."""
    backward_peaks: Mapping[str, float]
    """Largest number of live bytes in the backward of each part, beyond what this and all earlier
    layers keep, without gradients of weights. Negative where other parts have freed what they
    kept."""
    widest: float
    """Bytes of the largest output of a matrix product in the MLP."""
    forward: Mapping[str, PartWork]
    backward: Mapping[str, PartWork]


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelProfile:
    """One variant of one model."""

    num_tokens: int
    """That were traced, in all samples together."""
    layers: tuple[LayerProfile, ...]
    shared: float
    """Kept once for all layers: rotations, masks, what the embedding keeps."""
    head: float
    """Kept by the final norm and the output projection."""
    loss: float
    """Alive around the loss at its widest, beyond all that is kept."""
    forward: Mapping[str, PartWork]
    """Work of `embedding` and of `head`, which is final norm, output projection and loss."""
    backward: Mapping[str, PartWork]

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON values; `from_dict` reads it back."""
        return asdict(self)

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> ModelProfile:
        """Read back what `to_dict` wrote.

        Raises:
            KeyError, TypeError: it is no such record.
        """
        layers = tuple(_layer(layer) for layer in record["layers"])
        return cls(**{**record, **_works(record), "layers": layers})


def _layer(record: Mapping[str, Any]) -> LayerProfile:
    saved = {name: tuple(_saved(group) for group in record[name]) for name in ("saved", "lean")}
    return LayerProfile(**{**record, **_works(record), **saved})


def _saved(record: Mapping[str, Any]) -> Saved:
    return Saved(
        parts=tuple(record["parts"]),
        input_of=tuple(record["input_of"]),
        token_bytes=record["token_bytes"],
    )


def _works(record: Mapping[str, Any]) -> dict[str, dict[str, PartWork]]:
    return {
        direction: {part: _work(work) for part, work in record[direction].items()}
        for direction in ("forward", "backward")
    }


def _work(record: Mapping[str, Any]) -> PartWork:
    return PartWork(**{**record, "matmuls": tuple(MatMul(**one) for one in record["matmuls"])})
