"""Dynamic loss scaling where DeepSpeed has none: for fp16 without ZeRO.

Micikevicius et al., Mixed Precision Training (arXiv 1710.03740), section 3.2. Gradients are
scaled as they enter the model, so the loss itself keeps its value. Does not know which weights are
fp16, nor what an optimizer does with their gradients.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.utils._pytree import tree_map_only

from autotune.space.deepspeed_config import GRADIENT_CLIPPING, INITIAL_SCALE_POWER

__all__ = ["LossScale"]


class LossScale:
    """Scales gradients in a model, and takes the scale from them again.

    Lowered and raised by DeepSpeed's own scaler, with the settings that it has under ZeRO.

    Args:
        model: every tensor that it returns passes scaled gradients on; changed in place. A scale
            that it had is no longer its own.
    """

    def __init__(self, model: nn.Module) -> None:
        from deepspeed.runtime.fp16.loss_scaler import CreateLossScaler
        from deepspeed.runtime.precision_config import DeepSpeedFP16Config

        settings = DeepSpeedFP16Config(initial_scale_power=INITIAL_SCALE_POWER)
        self.scaler: Any = CreateLossScaler(
            torch.float16, 0, True, settings.dynamic_loss_scale_args()
        )
        self.max_norm = GRADIENT_CLIPPING
        """The norm that all gradients together are clipped to."""
        if hasattr(model, "_loss_scale"):
            model._loss_scale.remove()  # type: ignore[operator,union-attr]
        model._loss_scale = model.register_forward_hook(self._scale_outputs)  # type: ignore[assignment]

    def unscale(self, gradients: Sequence[torch.Tensor]) -> bool:
        """Unscale and clip gradients in place, and adapt the scale.

        Args:
            gradients: fp32, of all parameters, averaged over the ranks.

        Returns:
            Whether they are finite; where a rank's are not, the answer is no on all of them.
        """
        norm = torch.nn.utils.get_total_norm(gradients) / self.scaler.loss_scale
        if dist.is_initialized():
            # All ranks hold the same gradients: whatever makes them differ must not part them.
            dist.all_reduce(norm)
            norm /= dist.get_world_size()
        is_finite = bool(norm.isfinite())
        if is_finite:
            # As ZeRO clips: `stage_1_and_2.py`, `unscale_and_clip_grads`.
            excess = max(float(norm + 1e-6) / self.max_norm, 1.0)
            for gradient in gradients:
                gradient.mul_(1.0 / (self.scaler.loss_scale * excess))
        self.scaler.update_scale(not is_finite)
        return is_finite

    def state_dict(self) -> dict[str, Any]:
        """The scale, and since when it has held."""
        return dict(vars(self.scaler))

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with a saved scale."""
        vars(self.scaler).update(state_dict)

    def _scale_outputs(self, model: nn.Module, args: Any, output: Any) -> Any:
        # Logits too: a user's own loss may be computed from them.
        return tree_map_only(torch.Tensor, self._scaled, output)

    def _scaled(self, tensor: torch.Tensor) -> torch.Tensor:
        if not tensor.requires_grad:
            return tensor
        scaled: torch.Tensor = _ScaleGradient.apply(tensor, self.scaler)  # type: ignore[no-untyped-call]
        return scaled


class _ScaleGradient(torch.autograd.Function):
    """The identity, whose gradient is multiplied by the loss scale."""

    @staticmethod
    def forward(ctx: Any, tensor: torch.Tensor, scaler: Any) -> torch.Tensor:
        ctx.scaler = scaler
        # Losses are changed in place, by HF Trainer too, which torch forbids for a view from here.
        # Logits are too large to be copied.
        return tensor.view_as(tensor) if tensor.dim() else tensor.clone()

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> Any:
        return gradient * ctx.scaler.loss_scale, None
