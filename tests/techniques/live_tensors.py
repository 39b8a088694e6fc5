"""Bytes of tensors that are alive: what forward keeps for backward, and the peak of a step."""

from __future__ import annotations

import torch
from torch import nn
from torch.distributed._tools.mem_tracker import MemTracker


def kept_bytes(model: nn.Module, tokens: torch.Tensor) -> int:
    """What one forward saves for backward on the model's device, each storage once."""
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = model(input_ids=tokens, labels=tokens).loss
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    del loss
    return sum(size for place, size in kept.items() if place not in weights)


def peak_bytes(model: nn.Module, tokens: torch.Tensor) -> int:
    """The most bytes of tensors alive at once in a forward and backward, weights included."""
    model.zero_grad()
    tracker = MemTracker()
    tracker.track_external(model)
    with tracker:
        model(input_ids=tokens, labels=tokens).loss.backward()
    [peak] = tracker.get_tracker_snapshot("peak").values()
    return int({str(kind): size for kind, size in peak.items()}["Total"])
