"""The optimizers: one row each, with what every other file needs to know of them.

Does not know how large a model is, nor where its states are kept. A new optimizer is a member of
`Optimizer`, a row here, and tests; `CONTRIBUTING.md` says what else an unusual one needs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from autotune.knob_values import Optimizer

__all__ = ["BITSANDBYTES_MOST_ELEMENTS", "OPTIMIZERS", "Library", "OptimizerFacts", "StateForm"]

BITSANDBYTES_MOST_ELEMENTS = 2**31 - 1
"""The most elements of a tensor for bitsandbytes' kernels: with more CUDA ends the process."""


class Library(StrEnum):
    """Who builds the optimizer."""

    TORCH = "torch"
    """DeepSpeed can build it from its JSON, which looks its class up in `torch.optim`."""
    BITSANDBYTES = "bitsandbytes"
    DEEPSPEED = "deepspeed"
    """DeepSpeed has it; it is built outside of the JSON all the same."""


class StateForm(StrEnum):
    """The numbers of one state tensor, which has an element for each parameter."""

    MASTER = "master"
    """In the precision of the master weights."""
    FP32 = "fp32"
    """Whatever the precision of the master weights."""
    BLOCKWISE_8BIT = "8bit"
    """A byte, with an fp32 absmax for each block of 256 (bitsandbytes).

    Dettmers et al., 8-bit Optimizers (arXiv 2110.02861), section 2.
    """


@dataclass(frozen=True, kw_only=True, slots=True)
class OptimizerFacts:
    """What is known of one optimizer."""

    library: Library
    class_name: str
    """Its class in the library; the type in DeepSpeed's JSON for `Library.TORCH`."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Arguments beside the learning rate."""
    states: tuple[StateForm, ...] = ()
    """Its state tensors, in the order in which they are made."""
    is_factored: bool = False
    """Whether a matrix has a row and a column of states in place of `states`.

    Shazeer and Stern, Adafactor (arXiv 1804.04235), section 3.
    """
    is_paged: bool = False
    """Whether its states are in CUDA's managed memory, and may move to the host."""
    needs_whole_matrices: bool = False
    """Whether it works on matrices as they are: a flat or a divided one is another update."""
    is_step_simulated: bool = True
    """Whether the simulation of reserved memory knows all that its step allocates."""
    smaller: tuple[Optimizer, ...] = ()
    """Optimizers whose states surely take no more, with any precision of the master weights."""
    passes: int = 3
    """Numbers in master precision that its update moves for a parameter, beside its states.

    Weight and gradient are read and the weight is written; torch's SGD passes six times beside
    its momentum (`optim/sgd.py`, `_multi_tensor_sgd`), its Adafactor seventeen
    (`optim/_adafactor.py`, `_single_tensor_adafactor`).
    """
    instructions: int = 0
    """Instructions that a thread issues for one parameter; 0 where memory surely takes longer.

    Of bitsandbytes' kernels (`csrc/cuda/optimizers.cu`, `kOptimizerStatic8bit2StateBlockwise`,
    `kOptimizerStatic8bit1StateBlockwise`, `kOptimizer32bit1State`; version 0.50 disassembled for
    compute capability 9.0). In 8 bit each parameter has a thread of its own, which looks up the
    moments in tables of 256 values, finds the greatest of its block, and searches the tables for
    the new ones: two searches of seven steps.
    """
    launches: int = 0
    """Launches of kernels for each tensor that it steps over by itself, beside what all take."""
    deviation: float = 0.0
    """How much more the logarithm of a predicted step time may be off: few trials were seen."""

    @property
    def is_8bit(self) -> bool:
        """Whether its states are in 8 bit."""
        return StateForm.BLOCKWISE_8BIT in self.states

    @property
    def launches_under_zero(self) -> int:
        """`launches` where it is handed flat partitions: bitsandbytes steps over few tensors."""
        return 0 if self.library is Library.BITSANDBYTES else self.launches

    @property
    def most_elements(self) -> int | None:
        """The most elements of a tensor that its kernels take; None where they take any."""
        is_bounded = self.library is Library.BITSANDBYTES
        return BITSANDBYTES_MOST_ELEMENTS if is_bounded else None


_MASTER, _FP32, _8BIT = StateForm.MASTER, StateForm.FP32, StateForm.BLOCKWISE_8BIT

_BITSANDBYTES_LAUNCHES = 8
"""bitsandbytes waits for the device behind each tensor (`optim/optimizer.py`, `sync_gpu`).
Measured on one H200: 59 to 70 µs in five of six."""

OPTIMIZERS: Mapping[Optimizer, OptimizerFacts] = {
    Optimizer.ADAMW: OptimizerFacts(
        library=Library.TORCH,
        class_name="AdamW",
        settings={"betas": [0.9, 0.999], "eps": 1e-8, "weight_decay": 0.0},
        states=(_MASTER, _MASTER),
        smaller=(
            Optimizer.ADAMW_8BIT,
            Optimizer.PAGED_ADAMW_8BIT,
            Optimizer.LION,
            Optimizer.LION_8BIT,
            Optimizer.SGD,
        ),
    ),
    Optimizer.ADAMW_8BIT: OptimizerFacts(
        library=Library.BITSANDBYTES,
        class_name="AdamW8bit",
        settings={"weight_decay": 0.0},
        states=(_8BIT, _8BIT),
        smaller=(Optimizer.PAGED_ADAMW_8BIT, Optimizer.LION_8BIT),
        instructions=510,
        launches=_BITSANDBYTES_LAUNCHES,
    ),
    Optimizer.PAGED_ADAMW_8BIT: OptimizerFacts(
        library=Library.BITSANDBYTES,
        class_name="PagedAdamW8bit",
        settings={"weight_decay": 0.0},
        states=(_8BIT, _8BIT),
        is_paged=True,
        instructions=510,
        launches=_BITSANDBYTES_LAUNCHES,
    ),
    Optimizer.LION: OptimizerFacts(
        library=Library.BITSANDBYTES,
        class_name="Lion",
        settings={"weight_decay": 0.0},
        states=(_FP32,),
        smaller=(Optimizer.LION_8BIT,),
        instructions=98,
        launches=_BITSANDBYTES_LAUNCHES,
    ),
    Optimizer.LION_8BIT: OptimizerFacts(
        library=Library.BITSANDBYTES,
        class_name="Lion8bit",
        settings={"weight_decay": 0.0},
        states=(_8BIT,),
        instructions=300,
        launches=_BITSANDBYTES_LAUNCHES,
    ),
    Optimizer.SGD: OptimizerFacts(
        library=Library.TORCH,
        class_name="SGD",
        settings={"momentum": 0.9},
        states=(_MASTER,),
        passes=6,
    ),
    Optimizer.ADAFACTOR: OptimizerFacts(
        library=Library.TORCH,
        class_name="Adafactor",
        settings={"weight_decay": 0.0},
        is_factored=True,
        needs_whole_matrices=True,
        is_step_simulated=False,
        passes=17,
        # torch's Adafactor launches 20 kernels and waits for the device three times. Measured on
        # one H200 beside what its kernels take: 135 ms of 455 tensors.
        launches=36,
        deviation=0.2,
    ),
    Optimizer.MUON: OptimizerFacts(
        library=Library.DEEPSPEED,
        class_name="MuonWithAuxAdam",
        # Of all but the matrices of the layers, which have one momentum.
        states=(_MASTER, _MASTER),
        needs_whole_matrices=True,
        is_step_simulated=False,
        # Five iterations of three products for each matrix. Assumed, from its source.
        launches=60,
        deviation=0.25,
    ),
}
"""Every optimizer's row; a member of `Optimizer` without one is an error (`KeyError`)."""
