"""The optimizers that DeepSpeed cannot build from its JSON, and which are handed to it.

Does not know learning rates, nor schedules.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from autotune.knob_values import Optimizer
from autotune.space.deepspeed_config import flattens_parameters, is_client_optimizer
from autotune.space.optimizers import BITSANDBYTES_MOST_ELEMENTS, OPTIMIZERS, Library
from autotune.space.strategy import Strategy
from autotune.techniques.loss_scale import LossScale
from autotune.techniques.master_weights import MasterWeights, ScaledMasterWeights
from autotune.techniques.precision import parameter_groups

__all__ = ["build_optimizer"]


def build_optimizer(
    model: nn.Module, strategy: Strategy, learning_rate: float
) -> torch.optim.Optimizer | None:
    """The optimizer of what trains in a model; None where DeepSpeed builds it from its JSON.

    For fp16 without ZeRO the model is changed too: its gradients are scaled from here on.

    Args:
        model: a causal language model of transformers, with the strategy put on it.
        strategy: its optimizer, and the ZeRO stage that says what the optimizer will see.
        learning_rate: of all parameters.
    """
    if not is_client_optimizer(strategy):
        return None
    builders = {
        Library.TORCH: _of_torch,
        Library.BITSANDBYTES: _of_bitsandbytes,
        Library.DEEPSPEED: _muon,
    }
    build = builders[OPTIMIZERS[strategy.optimizer].library]
    optimizer = build(model, strategy, learning_rate)
    if strategy.scales_own_loss:
        return ScaledMasterWeights(optimizer, LossScale(model))
    if strategy.has_several_dtypes and not flattens_parameters(strategy):
        return MasterWeights(optimizer)
    return optimizer


def _trainable(model: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def _of_torch(model: nn.Module, strategy: Strategy, learning_rate: float) -> torch.optim.Optimizer:
    """What DeepSpeed builds from its JSON, with a group for each dtype, which it cannot."""
    from deepspeed.accelerator import get_accelerator

    groups = parameter_groups(_trainable(model))
    facts = OPTIMIZERS[strategy.optimizer]
    settings = dict(facts.settings)
    if strategy.optimizer is Optimizer.ADAMW:
        settings["fused"] = get_accelerator().device_name() == "cuda"
    kind: Any = getattr(torch.optim, facts.class_name)
    optimizer: torch.optim.Optimizer = kind(groups, lr=learning_rate, **settings)
    return optimizer


def _of_bitsandbytes(
    model: nn.Module, strategy: Strategy, learning_rate: float
) -> torch.optim.Optimizer:
    """AdamW in 8 bit, paged or not, and Lion.

    DeepSpeed has a Lion of its own, which compiles an extension; bitsandbytes' comes compiled.
    """
    from bitsandbytes import optim

    facts = OPTIMIZERS[strategy.optimizer]
    kind: Any = getattr(optim, facts.class_name)
    parameters = parameter_groups(_trainable(model))
    if flattens_parameters(strategy):
        parameters = _divided(parameters)
    optimizer: torch.optim.Optimizer = kind(parameters, lr=learning_rate, **facts.settings)
    if not flattens_parameters(strategy):
        _keep_embeddings_in_32_bit(optimizer, model, parameters)
    return optimizer


def _divided(groups: list[Any]) -> list[Any]:
    """Groups of no more elements than a kernel takes: ZeRO makes one flat tensor of each.

    Under ZeRO-3 nothing is divided: DeepSpeed makes sub-groups of its own.
    """
    all_members = [group["params"] for group in groups if isinstance(group, dict)] or [groups]
    pieces: list[list[nn.Parameter]] = []
    for members in all_members:
        room = -1
        for parameter in members:
            if parameter.numel() > room:
                pieces.append([])
                room = BITSANDBYTES_MOST_ELEMENTS
            pieces[-1].append(parameter)
            room -= parameter.numel()
    return groups if len(pieces) == len(all_members) else [{"params": piece} for piece in pieces]


def _keep_embeddings_in_32_bit(
    optimizer: Any, model: nn.Module, parameters: list[nn.Parameter] | list[dict[str, Any]]
) -> None:
    """Give embeddings, and a head that shares their weights, states of fp32.

    Dettmers et al., 8-bit Optimizers (arXiv 2110.02861), section 2.3: their gradients vary most.
    """
    from bitsandbytes.optim import GlobalOptimManager

    # bitsandbytes has one manager for a process, which knows parameters by their place: it would
    # mistake another optimizer's for these. By place, because DeepSpeed puts fp32 copies there.
    manager = GlobalOptimManager.__new__(GlobalOptimManager)
    manager.initialize()
    for module in model.modules():
        if isinstance(module, nn.Embedding):
            manager.override_config(module.weight, "optim_bits", 32)
    manager.register_parameters(parameters)
    optimizer.mng = manager


def _muon(model: nn.Module, strategy: Strategy, learning_rate: float) -> torch.optim.Optimizer:
    """DeepSpeed's Muon for the matrices between embedding and head; AdamW for all else.

    From its JSON DeepSpeed would tell embeddings by their names, which not all models keep to
    (GPT-2). Its ZeRO looks for `use_muon` on each parameter.
    """
    from deepspeed.accelerator import get_accelerator
    from deepspeed.runtime.zero.muon.muon_optimizer import MuonWithAuxAdam

    for parameter in model.parameters():
        # Under ZeRO-3 a parameter's own shape is that of nothing.
        shape = getattr(parameter, "ds_shape", parameter.shape)
        parameter.use_muon = len(shape) >= 2  # type: ignore[attr-defined]
    head = model.get_output_embeddings()  # type: ignore[operator]
    for module in model.modules():
        if isinstance(module, nn.Embedding) or module is head:
            module.weight.use_muon = False  # type: ignore[union-attr]
    by_muon: dict[bool, list[nn.Parameter]] = {True: [], False: []}
    for parameter in _trainable(model):
        by_muon[parameter.use_muon].append(parameter)  # type: ignore[attr-defined]
    settings: dict[bool, dict[str, Any]] = {
        True: {"momentum": 0.95},
        False: {"betas": (0.9, 0.999), "eps": 1e-8},
    }
    groups = [
        {"params": members, "use_muon": use_muon, "lr": learning_rate, "weight_decay": 0.0}
        | settings[use_muon]
        for use_muon, members in by_muon.items()
        if members
    ]
    optimizer: torch.optim.Optimizer = MuonWithAuxAdam(
        groups,
        adam_optimizer=torch.optim.AdamW,
        adam_optimizer_kwargs={"fused": get_accelerator().device_name() == "cuda"},
    )
    return optimizer
