"""A causal model without memory, built from its configuration and run for a few tokens.

So a configuration that no trial could build or run is found out before anything else. Knows no
architecture. Imports transformers and torch when it is used.
"""

from __future__ import annotations

import gc
import logging
from collections.abc import Mapping
from functools import cache
from typing import Any

from autotune.question.model_config import transformers_config

__all__ = ["build_empty_model", "layers_path", "run_first_layers"]

_NUM_TOKENS = 8


class _Enough(Exception):
    """The layers behind are of kinds that have run."""


@cache
def _import_libraries() -> None:
    """Import what builds a model, and keep Python's garbage collection out of it from then on.

    All that is there to stay. The last collection, when the process ends, takes most of a second
    to go through it.
    """
    import torch  # noqa: F401
    from transformers import masking_utils, modeling_layers, modeling_utils  # noqa: F401

    gc.freeze()


def build_empty_model(record: Mapping[str, Any]) -> Any:
    """The model of a configuration, on the meta device.

    Raises:
        Exception: whatever the architecture's code raises that cannot be built so.
    """
    _import_libraries()
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        # In 16 bit: grouped products, by which experts are computed, know no fp32.
        model = AutoModelForCausalLM.from_config(
            transformers_config(record), attn_implementation="eager", dtype=torch.bfloat16
        )
    model.tie_weights()
    return model


def layers_path(model: Any, num_layers: int) -> str:
    """Where in the model the list of its decoder layers is.

    Raises:
        LookupError: no list of so many modules is found.
    """
    from torch import nn

    for path, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == num_layers:
            return str(path)
    raise LookupError(f"{type(model).__name__} has no list of {num_layers} decoder layers")


_OF_TWO_DEVICES = (
    "FakeTensor Device Propagation",
    "Expected all tensors to be on the same device",
)
"""Part of what a tensor without memory says that is combined with one of the CPU: torch 2.11, and
2.13."""


def run_first_layers(model: Any, num_layers: int) -> None:
    """Run forward until one decoder layer of each kind has run.

    Raises:
        Exception: whatever the architecture's code raises; not where it asks for values, which
            a model without memory does not have.
    """
    import torch
    from torch._subclasses import fake_tensor

    needs_values = (
        fake_tensor.DataDependentOutputException,
        fake_tensor.DynamicOutputShapeException,
        fake_tensor.UnsupportedFakeTensorException,
        fake_tensor.UnsupportedOperatorException,
        ImportError,
        NotImplementedError,
    )
    layers = model.get_submodule(layers_path(model, num_layers))
    num_run = _num_to_run(layers)
    if num_run < len(layers):
        layers[num_run].register_forward_pre_hook(_stop)
    positions = getattr(model.config, "max_position_embeddings", None) or _NUM_TOKENS
    tokens = torch.zeros(1, min(_NUM_TOKENS, positions), dtype=torch.long, device="meta")
    log = logging.getLogger("torch._subclasses.fake_tensor")
    level = log.level
    log.setLevel(logging.CRITICAL)
    try:
        with torch.no_grad(), fake_tensor.FakeTensorMode(allow_non_fake_inputs=True):
            model.train()(input_ids=tokens, labels=tokens, use_cache=False)
    except (_Enough, *needs_values):
        return
    except RuntimeError as error:
        # A class of its own from torch 2.13 on alone.
        if not any(words in str(error) for words in _OF_TWO_DEVICES):
            raise
    finally:
        log.setLevel(level)


def _stop(*_: object) -> None:
    raise _Enough


def _num_to_run(layers: Any) -> int:
    """Layers up to the first one of the last kind; of one kind are those of equal weights."""
    kinds = [
        (type(layer), tuple((name, p.shape) for name, p in layer.named_parameters()))
        for layer in layers
    ]
    return 1 + max(kinds.index(kind) for kind in kinds)
