"""One row for each optimizer, and what a row says is so."""

from __future__ import annotations

import importlib
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from autotune.knob_values import Optimizer
from autotune.space.optimizers import OPTIMIZERS, Library, StateForm

MODULES = {
    Library.TORCH: "torch.optim",
    Library.BITSANDBYTES: "bitsandbytes.optim",
    Library.DEEPSPEED: "deepspeed.runtime.zero.muon.muon_optimizer",
}


def test_each_optimizer_has_a_row() -> None:
    assert set(OPTIMIZERS) == set(Optimizer)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("optimizer", Optimizer)
def test_its_library_has_its_class(optimizer: Optimizer) -> None:
    facts = OPTIMIZERS[optimizer]
    assert hasattr(importlib.import_module(MODULES[facts.library]), facts.class_name)


@pytest.mark.parametrize("optimizer", Optimizer)
def test_what_is_smaller_has_no_more_states(optimizer: Optimizer) -> None:
    """In both precisions that master weights have."""
    for smaller in OPTIMIZERS[optimizer].smaller:
        for master in (2, 4):
            sizes = {StateForm.MASTER: master, StateForm.FP32: 4, StateForm.BLOCKWISE_8BIT: 1.02}
            own, other = (
                sum(sizes[form] for form in OPTIMIZERS[each].states)
                for each in (optimizer, smaller)
            )
            assert other <= own


class _Passes(TorchDispatchMode):
    """Counts the numbers that torch's kernels read and write."""

    def __init__(self) -> None:
        super().__init__()
        self.num = 0

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        result = function(*args, **(kwargs or {}))
        if function.is_view:
            return result
        changed = [
            place
            for place, argument in enumerate(function._schema.arguments)
            if argument.alias_info is not None and argument.alias_info.is_write
        ]
        # A list of kernels returns nothing; what it changes is among its arguments.
        written = tree_leaves(result) if result is not None else [args[n] for n in changed]
        for tensor in tree_leaves([args, kwargs, written]):
            self.num += tensor.numel() if isinstance(tensor, torch.Tensor) else 0
        return result


@pytest.mark.parametrize(
    ("optimizer", "settings"), [(Optimizer.ADAFACTOR, {}), (Optimizer.SGD, {"foreach": True})]
)
def test_passes_are_what_torchs_kernels_read_and_write(
    optimizer: Optimizer, settings: dict[str, Any]
) -> None:
    # On a GPU torch takes lists of kernels for SGD, and single ones for Adafactor.
    facts = OPTIMIZERS[optimizer]
    weight = torch.nn.Parameter(torch.ones(512, 512))
    built = getattr(torch.optim, facts.class_name)([weight], **facts.settings, **settings)
    for _ in range(2):
        weight.grad = torch.ones_like(weight)
        built.step()
    with _Passes() as passes:
        built.step()
    states = 2 * len(facts.states)
    assert passes.num / weight.numel() == pytest.approx(facts.passes + states, rel=0.01)
