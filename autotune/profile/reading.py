"""Reads a tape: what each layer and part keeps, holds at its widest and computes.

Knows how labels are made, (layer or -1, part), and nothing of any architecture.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping

from autotune.profile.model_profile import PARTS, LayerProfile, ModelProfile, PartWork, Saved
from autotune.profile.part_work import gives_weight_gradient, is_matmul, part_work
from autotune.profile.tape import Kept, Kernel, Moment, Tape

__all__ = ["Reading"]

_OUTSIDE = -1
_HEAD_PARTS = ("final", "lm_head", "loss")

_MATERIALIZED = ("Mm", "Addmm", "Bmm", "Baddbmm", "GroupedMm", "ScaledDotProduct", "Convolution")
"""Beginnings of autograd nodes whose inputs compiled code must have in memory."""

_NOT_REPEATED = ("embedding", "index", "sort", "topk", "gather", "scatter", "cumsum", "histc")
"""Beginnings of operations, beside matrix products, that compiled code does not do again."""


class Reading:
    """One tape, and where its layers begin.

    Args:
        tape: of one forward and backward; read once both are done.
        num_tokens: of all samples.
        counts: the layers to tell of, and how many such there are in the whole model.
    """

    def __init__(self, tape: Tape, *, num_tokens: int, counts: Mapping[int, int]) -> None:
        self._tape = tape
        self._num_tokens = num_tokens
        self._counts = counts
        self._inputs: dict[int, int] = {}
        self._entering: dict[tuple[int, str], set[int]] = defaultdict(set)

    def start(self, layer: int, number: int) -> None:
        """A layer begins, with the storage of that number as its input."""
        self._inputs[layer] = number

    def enter(self, layer: int, part: str, numbers: Iterable[int]) -> None:
        """A part of a layer begins, with these storages as arguments."""
        self._entering[layer, part].update(numbers)

    def profile(self, gradients: set[int]) -> ModelProfile:
        """All that is told of the model.

        Args:
            gradients: the storages of the gradients of weights.
        """
        moments = self._tape.moments(without=gradients | self._weight_gradients())
        shared = self._kept_outside(("embedding",)) - set(self._inputs.values())
        num_layers = len(self._inputs)
        owned = [self._owned(layer) - shared for layer in range(num_layers)]
        of_head = self._kept_outside(("final", "lm_head")) - shared
        base, bases = self._bytes(shared), []
        for layer in owned:
            base += self._bytes(layer)
            bases.append(base)
        in_head = [m for m in moments if m.label[0] == _OUTSIDE and m.label[1] in _HEAD_PARTS]
        loss = max(moment.live_bytes for moment in in_head) - base - self._bytes(of_head)
        return ModelProfile(
            num_tokens=self._num_tokens,
            layers=tuple(
                self._layer(layer, owned[layer], shared, moments, bases[layer])
                for layer in sorted(self._counts)
            ),
            shared=self._bytes(shared) / self._num_tokens,
            head=self._bytes(of_head) / self._num_tokens,
            loss=loss / self._num_tokens,
            forward=self._work_outside(is_backward=False),
            backward=self._work_outside(is_backward=True),
        )

    def _layer(
        self, layer: int, owned: set[int], shared: set[int], moments: list[Moment], base: int
    ) -> LayerProfile:
        per_token = 1 / self._num_tokens
        inside = [moment for moment in moments if moment.label[0] == layer]
        forward = [moment.live_bytes for moment in inside if not moment.is_backward]
        peaks = {
            part: max(
                (m.live_bytes for m in inside if m.is_backward and m.label[1] == part),
                default=base,
            )
            for part in PARTS
        }
        in_mlp = [k for k in self._tape.kernels if k.label == (layer, "mlp") and is_matmul(k)]
        outputs = [self._bytes(set(k.writes)) for k in in_mlp if not k.is_backward]
        return LayerProfile(
            count=self._counts[layer],
            input_bytes=self._bytes({self._inputs[layer]}) * per_token,
            saved=self._groups(layer, {number: {number} for number in owned}),
            lean=self._groups(layer, self._lean(layer, owned, shared)),
            forward_peak=(max(forward) - base) * per_token,
            backward_peaks={part: (peak - base) * per_token for part, peak in peaks.items()},
            widest=max(outputs, default=0) * per_token,
            forward=self._work(layer, is_backward=False),
            backward=self._work(layer, is_backward=True),
        )

    def _weight_gradients(self) -> set[int]:
        """Storages of gradients of weights that end up in others: of a weight that is used twice.

        Liger computes that of the output projection in forward, and on the host by way of sums
        in fp32 that a GPU does not make (`ops/fused_linear_cross_entropy.py`, `torch.addmm`).
        """
        found: set[int] = set()
        for kernel in self._tape.kernels:
            if not kernel.is_backward and kernel.label[0] != _OUTSIDE:
                continue
            is_sum = kernel.name in ("_to_copy", "add_") and found.intersection(kernel.reads)
            if is_sum or gives_weight_gradient(self._tape, kernel):
                found.update(kernel.writes)
        return found

    def _owned(self, layer: int) -> set[int]:
        """What a layer keeps; its output is the next one's."""
        kept = {entry.storage for entry in self._kept_by(layer)}
        output = self._inputs.get(layer + 1)
        if output is None:
            output = next(iter(self._made_last(layer)), None)
        return kept - {output}

    def _made_last(self, layer: int) -> set[int]:
        """The output of the last layer, which the final norm keeps."""
        after = self._kept_outside(("final",))
        return {number for number in after if self._tape.made_in[number][0] == layer}

    def _kept_by(self, layer: int) -> list[Kept]:
        return [kept for kept in self._tape.kept.values() if kept.label[0] == layer]

    def _kept_outside(self, parts: tuple[str, ...]) -> set[int]:
        """What is kept outside of layers, in these parts, or made in them and kept in layers."""
        labels = [(_OUTSIDE, part) for part in parts]
        return {
            kept.storage
            for kept in self._tape.kept.values()
            if kept.label in labels or self._tape.made_in[kept.storage] == labels[0]
        }

    def _lean(self, layer: int, owned: set[int], shared: set[int]) -> dict[int, set[int]]:
        """For each storage that compiled code keeps, those of `owned` that it is kept for.

        What only pointwise operations and reductions read in backward, they compute again from
        the nearest results of other operations.
        """
        nodes: dict[int, set[str]] = defaultdict(set)
        for kept in self._kept_by(layer):
            nodes[kept.storage] |= kept.nodes
        lean: dict[int, set[int]] = defaultdict(set)
        for number in owned:
            stays = any(node.startswith(_MATERIALIZED) for node in nodes[number])
            for source in {number} if stays else self._sources(layer, number):
                if source not in shared and not self._tape.is_known(source):
                    lean[source].add(number)
        return lean

    def _sources(self, layer: int, number: int) -> set[int]:
        """The results of other than pointwise operations that a storage is computed from."""
        sources, seen, waiting = set(), {number}, [number]
        while waiting:
            storage = waiting.pop()
            kernel = self._tape.made_by.get(storage)
            if kernel is None or storage == self._inputs[layer] or self._stays(kernel, layer):
                sources.add(storage)
                continue
            waiting += set(kernel.reads) - seen
            seen.update(kernel.reads)
        return sources

    def _stays(self, kernel: Kernel, layer: int) -> bool:
        """Whether compiled code of a layer keeps what this gives, rather than do it again."""
        is_outside = kernel.label[0] != layer
        return is_outside or is_matmul(kernel) or kernel.name.startswith(_NOT_REPEATED)

    def _groups(self, layer: int, storages: Mapping[int, set[int]]) -> tuple[Saved, ...]:
        """Bytes of storages, by the parts that keep what each of them is for."""
        keepers: dict[int, set[str]] = defaultdict(set)
        for kept in self._kept_by(layer):
            keepers[kept.storage].add(kept.label[1])
        totals: Counter[tuple[tuple[str, ...], tuple[str, ...]]] = Counter()
        for number, stands_for in storages.items():
            parts = set().union(*(keepers[other] for other in stands_for))
            inputs = [part for part in PARTS if number in self._entering[layer, part]]
            totals[tuple(sorted(parts)), tuple(inputs)] += self._tape.size_bytes[number]
        return tuple(
            Saved(parts=parts, input_of=inputs, token_bytes=size / self._num_tokens)
            for (parts, inputs), size in sorted(totals.items())
        )

    def _work(self, layer: int, *, is_backward: bool) -> dict[str, PartWork]:
        return {
            part: part_work(self._tape, [(layer, part)], self._num_tokens, is_backward=is_backward)
            for part in PARTS
        }

    def _work_outside(self, *, is_backward: bool) -> dict[str, PartWork]:
        groups = {"embedding": ("embedding",), "head": _HEAD_PARTS}
        return {
            name: part_work(
                self._tape,
                [(_OUTSIDE, part) for part in parts],
                self._num_tokens,
                is_backward=is_backward,
            )
            for name, parts in groups.items()
        }

    def _bytes(self, numbers: set[int]) -> int:
        return sum(self._tape.size_bytes[number] for number in numbers)
