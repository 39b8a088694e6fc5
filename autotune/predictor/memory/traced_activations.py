"""The memory of one token, put together from the parts of a profile.

Recomputation, tiles, division over ranks and precisions are arithmetic on these parts, so that few
profiles serve all strategies. Does not know how a profile is made.
"""

from __future__ import annotations

from collections.abc import Mapping

from autotune.knob_values import CheckpointScope, Offload
from autotune.predictor.memory.activations import TokenBytes
from autotune.predictor.memory.precision import GroupBytes, group_bytes
from autotune.profile import LayerProfile, ModelProfile, Saved
from autotune.space.strategy import Strategy

__all__ = ["traced_token_bytes"]

_LIGER_LOSS_INPUTS = 3
"""Liger's loss holds the gradient of its input, and a chunk of logits of one to two times its size
(`ops/fused_linear_cross_entropy.py`)."""

_Key = tuple[tuple[str, ...], tuple[str, ...]]


def traced_token_bytes(
    profiles: Mapping[int, ModelProfile],
    strategy: Strategy,
    *,
    has_liger: bool,
    is_tied: bool,
    is_cpu: bool,
) -> TokenBytes:
    """The bytes that one token holds on one rank.

    If layers differ, the mean counts for bytes of all layers, and the largest for bytes of the
    current layer.

    Args:
        profiles: the profiles with the strategy's kernels and adapters, by bytes of an element;
            one for each size that the strategy has.
        strategy: says what is recomputed, tiled and divided.
        has_liger: whether the profiles are those of Liger's kernels. If the strategy has fused
            kernels and the profiles do not, layers are assumed to keep the same as compiled
            layers.
        is_tied: whether the head shares the embedding's weights, and its logits are divided.
        is_cpu: whether the device is the host, so that nothing can be moved there.
    """
    sizes = group_bytes(strategy)
    residual, of_head = profiles[sizes.residual], profiles[sizes.lm_head]
    is_lean = (strategy.torch_compile or strategy.fused_kernels) and not has_liger
    kinds = [
        _Layer({e: p.layers[index] for e, p in profiles.items()}, strategy, sizes, is_lean)
        for index in range(len(residual.layers))
    ]
    counts = [layer.count for layer in residual.layers]
    kept = sum(k.kept * n for k, n in zip(kinds, counts, strict=True)) / sum(counts)
    recomputed = max(kind.recomputed for kind in kinds)
    widest = max(kind.kept + kind.beyond for kind in kinds) - kept - recomputed
    layer_input = residual.layers[0].input_bytes
    moves = strategy.offload_checkpoints is Offload.CPU and not is_cpu
    is_moved = moves and strategy.checkpoint_scope is not CheckpointScope.LAYER
    host = layer_input if is_moved else 0
    return TokenBytes(
        layer_input=round(layer_input),
        layer=round(kept - host),
        recomputed=round(recomputed),
        # By then, backward of the head has ended and freed what the head kept.
        layer_backward=max(0, round(widest - of_head.head)),
        head=round(of_head.head + residual.shared),
        loss=round(_loss(of_head, strategy, layer_input, has_liger=has_liger, is_tied=is_tied)),
        host_layer=round(host),
    )


def _loss(
    profile: ModelProfile,
    strategy: Strategy,
    layer_input: float,
    *,
    has_liger: bool,
    is_tied: bool,
) -> float:
    """Bytes around the loss; with tiles they include the gradient of the whole input."""
    if has_liger:
        return profile.loss
    if strategy.fused_kernels:
        return _LIGER_LOSS_INPUTS * layer_input
    tiles = strategy.loss_tiles
    divisor = tiles * (strategy.tensor_parallel_size if is_tied else 1)
    return profile.loss / divisor + (layer_input if tiles > 1 else 0)


class _Layer:
    """One kind of decoder layer under a strategy."""

    def __init__(
        self,
        profiles: Mapping[int, LayerProfile],
        strategy: Strategy,
        sizes: GroupBytes,
        is_lean: bool,
    ) -> None:
        self._profiles = profiles
        self._strategy = strategy
        self._size = {
            "attention": sizes.attention,
            "mlp": sizes.mlp,
            "norm": sizes.norm,
            "rest": sizes.residual,
        }
        self._input = profiles[sizes.residual].input_bytes
        self._is_lean = is_lean
        scope = strategy.checkpoint_scope
        parts = {
            "attention": scope is CheckpointScope.ATTENTION,
            "mlp": scope is CheckpointScope.MLP or strategy.mlp_tiles > 1,
        }
        self._repeated = [part for part, is_repeated in parts.items() if is_repeated]
        saved = self._saved()
        tensor = strategy.tensor_parallel_size
        own = {part: _own(saved, part) / tensor for part in ("attention", "mlp")}
        whole = sum(saved.values()) - (tensor - 1) * sum(own.values())
        gap = sum(own[part] for part in self._repeated)
        inputs = sum(self._input for part in self._repeated if not _has_input(saved, part))
        self.kept = whole - gap + inputs
        """Bytes kept until backward reaches the layer."""
        held = {part: own[part] for part in self._repeated}
        if "mlp" in held:
            held["mlp"] /= strategy.mlp_tiles
        self.recomputed = max(held.values(), default=0.0)
        """Bytes of the part that backward recomputes; the larger one if it recomputes both."""
        self.beyond = self._beyond(gap - inputs, own)
        """Most bytes that backward holds in addition to `kept`."""

    def _saved(self) -> dict[_Key, float]:
        """Bytes by the parts that keep them, each in its own precision."""
        tables = {size: _table(self._groups(layer)) for size, layer in self._profiles.items()}
        keys = dict.fromkeys(key for table in tables.values() for key in table)
        return {
            key: sum(tables[size].get(key, 0.0) for size in {self._size[p] for p in key[0]})
            for key in keys
        }

    def _groups(self, layer: LayerProfile) -> tuple[Saved, ...]:
        return layer.lean if self._is_lean else layer.saved

    def _beyond(self, gap: float, own: Mapping[str, float]) -> float:
        """Most bytes that any part holds, beyond those kept when the layer's backward begins.

        A recomputed part holds again what was not kept. Backward passes the MLP before attention,
        and has freed by then what the MLP recomputed.
        """
        peaks = {part: self._peak(part) for part in self._size}
        strategy, scope = self._strategy, self._strategy.checkpoint_scope
        tiles = strategy.mlp_tiles
        if "mlp" in self._repeated:
            whole = self._input if tiles > 1 else 0
            peaks["mlp"] = (own["mlp"] + peaks["mlp"]) / tiles + whole
        if self._repeated:
            peaks["attention"] += gap
        is_repeated = strategy.checkpoint_interval and scope is CheckpointScope.LAYER
        forward = self._profiles[self._size["rest"]].forward_peak if is_repeated else 0.0
        return max(*peaks.values(), forward)

    def _peak(self, part: str) -> float:
        """Bytes of backward's peak in one part; those of attention and MLP are divided."""
        layer = self._profiles[self._size[part]]
        peak = layer.backward_peaks[part]
        if self._is_lean and part == "mlp":
            # One fused kernel makes the gradients of all of the MLP's pointwise operations.
            peak = layer.widest + 2 * self._input
        tensor = self._strategy.tensor_parallel_size
        outside = min(max(peak, 0.0), 2 * self._input)
        return outside + (peak - outside) / tensor if part in ("attention", "mlp") else peak


def _table(groups: tuple[Saved, ...]) -> dict[_Key, float]:
    return {(group.parts, group.input_of): group.token_bytes for group in groups}


def _own(saved: Mapping[_Key, float], part: str) -> float:
    """Bytes that only this part keeps, without its input from outside."""
    return sum(
        size for (parts, inputs), size in saved.items() if parts == (part,) and part not in inputs
    )


def _has_input(saved: Mapping[_Key, float], part: str) -> bool:
    return any(part in inputs for _, inputs in saved)
