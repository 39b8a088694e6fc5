"""The names that transformers' Trainer has for optimizers, which Axolotl takes over.

`OptimizerNames` of transformers 5.24 (`training_args.py`), and those of Axolotl beside them.
"""

from __future__ import annotations

from collections.abc import Mapping

from autotune.knob_values import Optimizer

__all__ = ["OPTIMIZER_NAMES"]

OPTIMIZER_NAMES: Mapping[str, Optimizer] = {
    "adamw_torch": Optimizer.ADAMW,
    "adamw_torch_fused": Optimizer.ADAMW,
    "adamw_hf": Optimizer.ADAMW,
    "adamw_bnb_8bit": Optimizer.ADAMW_8BIT,
    "adamw_8bit": Optimizer.ADAMW_8BIT,
    # torchao's, with states of the same size.
    "adamw_torch_8bit": Optimizer.ADAMW_8BIT,
    "ao_adamw_8bit": Optimizer.ADAMW_8BIT,
    "paged_adamw_8bit": Optimizer.PAGED_ADAMW_8BIT,
    "lion_32bit": Optimizer.LION,
    "lion_8bit": Optimizer.LION_8BIT,
    "sgd": Optimizer.SGD,
    "adafactor": Optimizer.ADAFACTOR,
    "muon": Optimizer.MUON,
}
"""The knob's value for each name; the first name of a value is written. A name that is missing
here has no counterpart."""
