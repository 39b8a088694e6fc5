"""An optimizer that updates fp32 copies of 16-bit parameters.

DeepSpeed keeps such copies itself under ZeRO. Without ZeRO it does so only where all parameters
have one 16-bit dtype. Does not know what the optimizer's algorithm is.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

__all__ = ["MasterWeights"]


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
        for parameter, master in self.copies:
            master.grad = None
            parameter.copy_(master)
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

    def _make_copies(self) -> None:
        for group in self.param_groups:
            group["params"] = [self._master(parameter) for parameter in group["params"]]

    def _master(self, parameter: torch.Tensor) -> torch.Tensor:
        if parameter.dtype is torch.float32:
            return parameter
        master = parameter.detach().float().requires_grad_()
        self.copies.append((parameter, master))
        return master
