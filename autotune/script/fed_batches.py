"""Counts what a training program feeds its model: samples, tokens, padding, lengths.

Does not know when an optimizer step begins or ends.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

__all__ = ["FedBatches", "StepFigures"]

_MOST_LENGTHS = 20_000
"""Lengths of so many samples are kept at most."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StepFigures:
    """What one rank fed in one optimizer step."""

    num_batches: int
    rows: int
    """Rows of all batches: samples, unless several are joined in one."""
    real_tokens: float
    """Tokens that are no padding."""
    padded_tokens: float
    """Tokens with padding; 0 where batches have none."""
    longest_row: int = 0
    """Tokens of the longest row, with padding."""


class FedBatches:
    """A hook before each forward pass of the model that trains.

    Nothing here waits for the device: sums stay on it until a step has ended.
    """

    def __init__(self) -> None:
        self.lengths: list[int] = []
        """Tokens of the samples so far, without padding."""
        self.rows_of_batches: list[int] = []
        """Rows of each batch of the last step."""
        self.is_joined = False
        """Whether several samples were joined in one row."""
        self.has_masks = False
        """Whether every batch of tokens so far had a mask that tells its padding."""
        self._num_with_ids = self._num_with_masks = 0
        self._real: list[torch.Tensor] = []
        self._row_lengths: list[torch.Tensor] = []
        self._joined: list[torch.Tensor] = []
        self._padded = 0
        self._longest = 0
        self._rows: list[int] = []

    def watch(self, module: torch.nn.Module) -> None:
        """Count from now on what goes into a module."""
        module.register_forward_pre_hook(self._before_forward, with_kwargs=True)

    def _before_forward(
        self, module: torch.nn.Module, args: Any, kwargs: Mapping[str, Any]
    ) -> None:
        # Reference models, evaluation and recomputation feed no new samples.
        if not torch.is_grad_enabled():
            return
        ids = kwargs.get("input_ids")
        if not isinstance(ids, torch.Tensor):
            ids = next((a for a in args if isinstance(a, torch.Tensor) and _is_ids(a)), None)
        if ids is None:
            self._count_rows(args, kwargs)
            return
        self._rows.append(int(ids.shape[0]))
        self._padded += ids.numel()
        self._num_with_ids += 1
        self._num_with_masks += _mask(ids, kwargs) is not None
        self.has_masks = self._num_with_masks == self._num_with_ids
        self._longest = max(self._longest, int(ids.shape[1]))
        joined = _joined_positions(ids, kwargs)
        if joined is not None:
            # To find where samples begin waits for the device: done when a step has ended.
            self._joined.append(joined)
            return
        lengths = _row_lengths(ids, kwargs)
        self._row_lengths.append(lengths)
        is_encoder_decoder = getattr(getattr(module, "config", None), "is_encoder_decoder", False)
        of_decoder = _num_targets(kwargs) if is_encoder_decoder else 0
        self._real.append(lengths.sum() + of_decoder)

    def _count_rows(self, args: Any, kwargs: Mapping[str, Any]) -> None:
        """A batch without token ids: images, features, embeddings."""
        tensors = [t for t in (*args, *kwargs.values()) if isinstance(t, torch.Tensor) and t.dim()]
        self._rows.append(int(tensors[0].shape[0]) if tensors else 0)

    def end_step(self) -> StepFigures:
        """What was fed since the last call; the device has ended the step by now."""
        for positions in self._joined:
            lengths = _joined_lengths(positions)
            self.is_joined |= lengths.numel() > positions.shape[0]
            self._row_lengths.append(lengths)
            self._real.append(lengths.sum())
        real = float(torch.stack(self._real).sum()) if self._real else 0.0
        if len(self.lengths) < _MOST_LENGTHS:
            for lengths in self._row_lengths:
                self.lengths.extend(int(length) for length in lengths.tolist() if length)
        figures = StepFigures(
            num_batches=len(self._rows),
            rows=sum(self._rows),
            real_tokens=real,
            padded_tokens=float(self._padded),
            longest_row=self._longest,
        )
        self.rows_of_batches = self._rows
        self._real, self._row_lengths, self._joined, self._rows = [], [], [], []
        self._padded = self._longest = 0
        return figures


def _is_ids(tensor: torch.Tensor) -> bool:
    return tensor.dim() == 2 and not tensor.is_floating_point()


def _mask(ids: torch.Tensor, kwargs: Mapping[str, Any]) -> torch.Tensor | None:
    mask = kwargs.get("attention_mask")
    is_plain = isinstance(mask, torch.Tensor) and mask.dim() == 2 and mask.shape == ids.shape
    return mask if is_plain else None


def _joined_positions(ids: torch.Tensor, kwargs: Mapping[str, Any]) -> torch.Tensor | None:
    """The positions of tokens where they may tell several samples in a row apart."""
    positions = kwargs.get("position_ids")
    has_own = isinstance(positions, torch.Tensor) and positions.shape == ids.shape
    return positions if has_own and _mask(ids, kwargs) is None else None


def _joined_lengths(positions: torch.Tensor) -> torch.Tensor:
    """Tokens of each sample: positions begin anew with each; [samples]."""
    starts = (positions.flatten() == 0).nonzero().flatten()
    return torch.diff(starts, append=starts.new_tensor([positions.numel()]))


def _row_lengths(ids: torch.Tensor, kwargs: Mapping[str, Any]) -> torch.Tensor:
    """Tokens of each row without padding, by its mask or its labels; [rows]."""
    mask = _mask(ids, kwargs)
    if mask is not None:
        return (mask != 0).sum(dim=1)
    labels = kwargs.get("labels")
    if isinstance(labels, torch.Tensor) and labels.shape == ids.shape:
        # Behind the last token that is learned there is padding alone.
        places = torch.arange(1, ids.shape[1] + 1, device=ids.device)
        return ((labels != -100) * places).amax(dim=1)
    return torch.full((ids.shape[0],), ids.shape[1], device=ids.device)


def _num_targets(kwargs: Mapping[str, Any]) -> torch.Tensor | int:
    """Tokens of an encoder-decoder's targets, which are fed beside its inputs."""
    labels = kwargs.get("labels")
    return (labels != -100).sum() if isinstance(labels, torch.Tensor) else 0
