"""Optimizers that update fp32 copies of 16-bit parameters.

DeepSpeed keeps such copies itself under ZeRO. Without ZeRO it does so only where all parameters
have one 16-bit dtype, and fp16 fails. Does not know what the optimizer's algorithm is.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from autotune.techniques.loss_scale import LossScale

__all__ = ["MasterWeights", "ScaledMasterWeights"]


class MasterWeights(torch.optim.Optimizer):
    """Wraps an optimizer over the parameters themselves.

    The copies are made with the first step: where the parameters then are, and what they then
    hold. Those of fp32 are their own masters.

    Args:
        optimizer: has taken no step yet.
    """

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        super().__init__(optimizer.param_groups, optimizer.defaults)
        # One list and one state for both: schedulers change the groups of either.
        self.param_groups = optimizer.param_groups
        self.state = optimizer.state
        self.optimizer = optimizer
        self.copies: list[tuple[torch.Tensor, torch.Tensor]] = []
        """Each 16-bit parameter and its master."""

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update the masters by the gradients of the parameters, and the parameters by them."""
        if not self.copies:
            self._make_copies()
        for parameter, master in self.copies:
            gradient = parameter.grad
            master.grad = None if gradient is None else gradient.to(master.dtype)
        result = self.optimizer.step(closure)
        self._give_weights()
        return result

    def state_dict(self) -> dict[str, Any]:
        """As torch's, with the masters."""
        return self.optimizer.state_dict() | {"masters": [master for _, master in self.copies]}

    @torch.no_grad()
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the masters too, which hold more bits than the parameters."""
        masters = state_dict["masters"]
        if masters and not self.copies:
            self._make_copies()
        for (_, master), saved in zip(self.copies, masters, strict=True):
            master.copy_(saved)
        self.optimizer.load_state_dict({k: v for k, v in state_dict.items() if k != "masters"})
        self.param_groups, self.state = self.optimizer.param_groups, self.optimizer.state

    def _give_weights(self) -> None:
        for parameter, master in self.copies:
            master.grad = None
            parameter.copy_(master)

    def _make_copies(self) -> None:
        for group in self.param_groups:
            group["params"] = [self._master(parameter) for parameter in group["params"]]

    def _master(self, parameter: torch.Tensor) -> torch.Tensor:
        if parameter.dtype is torch.float32:
            return parameter
        master = parameter.detach().float().requires_grad_()
        self.copies.append((parameter, master))
        return master


class ScaledMasterWeights(MasterWeights):
    """Those of a model whose gradients are scaled: without the scale, or not updated at all.

    Args:
        optimizer: has taken no step yet.
        loss_scale: that of the model.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, loss_scale: LossScale) -> None:
        super().__init__(optimizer)
        self.loss_scale = loss_scale
        self.overflow = False
        """Whether the last step was skipped. DeepSpeed's engine counts by it, and then keeps the
        learning rate as it is."""

    @torch.no_grad()
    def get_grads_for_reduction(self) -> tuple[list[torch.Tensor], dict[str, Any]]:
        """What DeepSpeed's engine averages over the ranks, in place; of experts nothing.

        In fp32. 16-bit means the engine would round, and on CPUs without AVX512-FP16 it takes no
        fp16 at all.
        """
        return self._gradients(), {}

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Unscale and clip what was averaged, then update; change no weight on overflow."""
        self.overflow = not self.loss_scale.unscale(self._gradients())
        result = None if self.overflow else self.optimizer.step(closure)
        self._give_weights()
        return result

    def state_dict(self) -> dict[str, Any]:
        """As of the masters, with the loss scale."""
        return super().state_dict() | {"loss_scale": self.loss_scale.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with the scale too."""
        self.loss_scale.load_state_dict(state_dict["loss_scale"])
        super().load_state_dict({k: v for k, v in state_dict.items() if k != "loss_scale"})

    def _gradients(self) -> list[torch.Tensor]:
        """Gradients of all masters; zeros where only other ranks may have one."""
        if not self.copies:
            self._make_copies()
        for parameter, master in self.copies:
            if parameter.grad is not None:
                master.grad, parameter.grad = parameter.grad.to(master.dtype), None
        masters = [master for group in self.param_groups for master in group["params"]]
        for master in masters:
            if master.grad is None:
                master.grad = torch.zeros_like(master)
        return [master.grad for master in masters]
