"""One row for each optimizer, and what a row says is so."""

from __future__ import annotations

import importlib

import pytest

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
