"""One batch through a model: loss and gradients, calls of its modules, bytes of living tensors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.distributed._tools.mem_tracker import MemTracker

torch.set_num_threads(1)  # In products as small as these, threads only wait for each other.

TOKENS = torch.randint(0, 64, (2, 16), generator=torch.Generator().manual_seed(0))

LABELS = TOKENS.clone()
"""With tokens that are not learned: a prompt, and all of what one of three tiles covers."""
LABELS[0, :9] = -100
LABELS[1, 6:12] = -100
LABELS[0, 6:12] = -100


def train(
    model: nn.Module, labels: torch.Tensor = LABELS
) -> tuple[float, dict[str, torch.Tensor]]:
    """Loss and gradients of one batch, dropout drawn from the same seed."""
    model.zero_grad()
    torch.manual_seed(1)
    loss = model(input_ids=TOKENS, labels=labels).loss
    loss.backward()
    return loss.item(), {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


def count_calls(modules: list[nn.Module], run: Callable[[], Any]) -> int:
    """How often the modules' own code begins to run, recomputation included."""
    calls: list[nn.Module] = []
    handles = [m.register_forward_pre_hook(lambda m, _: calls.append(m)) for m in modules]
    run()
    for handle in handles:
        handle.remove()
    return len(calls)


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
