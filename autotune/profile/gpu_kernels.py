"""The kernels that a CUDA GPU would run, for code that is traced on the host.

PyTorch chooses kernels of attention and dropout by the device of their inputs, and on the host
others than on a GPU. Here its own operations of the GPU are called by name instead, whose autograd
formulas say what is kept: they need no GPU where tensors have no memory. Does not know models.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from typing import Any
from unittest import mock

import torch
from torch.nn import functional

__all__ = ["FLASH_ATTENTION", "attention_workspace_bytes", "gpu_kernels"]

FLASH_ATTENTION = "attention_without_memory"
"""The name under which transformers finds FlashAttention here, which need not be installed."""

_MAX_FLASH_HEAD_DIM = 256
_FP32_BYTES = 4


@contextlib.contextmanager
def gpu_kernels() -> Iterator[None]:
    """Have attention, dropout and masks go as on a GPU, for as long as this is entered."""
    from transformers import masking_utils
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    ALL_ATTENTION_FUNCTIONS.register(FLASH_ATTENTION, _flash_attention_forward)
    ALL_MASK_ATTENTION_FUNCTIONS.register(
        FLASH_ATTENTION, ALL_MASK_ATTENTION_FUNCTIONS["flash_attention_2"]
    )
    with (
        mock.patch.object(functional, "scaled_dot_product_attention", _attend),
        mock.patch.object(functional, "dropout", _dropout),
        # Asks positions for their values: whether several samples are packed into one.
        mock.patch.object(masking_utils, "find_packed_sequence_indices", return_value=None),
    ):
        yield


def _attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> torch.Tensor:
    """`scaled_dot_product_attention` by the kernel that PyTorch picks on a GPU.

    `aten/src/ATen/native/transformers/cuda/sdp_utils.cpp`: flash attention takes 16 bit, no mask
    and heads of up to 256; the memory-efficient kernel a mask and fp32, but no grouped keys. What
    is left for neither computes all scores.
    """
    if attn_mask is not None and attn_mask.dtype is torch.bool:
        # `attention.cpp`, `convert_boolean_attn_mask`: each call makes one of numbers, for keeps.
        attn_mask = torch.where(attn_mask, query.new_zeros(()), query.new_full((), -math.inf))
    is_16_bit = query.dtype in (torch.bfloat16, torch.float16)
    is_even = query.shape[-1] == value.shape[-1] <= _MAX_FLASH_HEAD_DIM
    if attn_mask is None and is_16_bit and is_even:
        return _flash(query, key, value, dropout_p, is_causal, scale)
    if enable_gqa and key.shape[1] != query.shape[1]:
        return torch.ops.aten._scaled_dot_product_attention_math(  # type: ignore[no-any-return]
            query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=True
        )[0]
    if attn_mask is not None:
        attn_mask = attn_mask.expand(*query.shape[:2], query.shape[2], key.shape[2])
    return torch.ops.aten._scaled_dot_product_efficient_attention(  # type: ignore[no-any-return]
        query, key, value, attn_mask, True, dropout_p, is_causal, scale=scale
    )[0]


def _flash(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    dropout_p: float,
    is_causal: bool,
    scale: float | None,
) -> torch.Tensor:
    """Flash attention, whose heads are padded to a multiple of 8 (`attention.cpp`)."""
    head_dim = query.shape[-1]
    if head_dim % 8:
        scale = scale or 1 / math.sqrt(head_dim)
        query, key, value = (functional.pad(x, (0, -head_dim % 8)) for x in (query, key, value))
    output = torch.ops.aten._scaled_dot_product_flash_attention(
        query, key, value, dropout_p, is_causal, scale=scale
    )[0]
    return output[..., :head_dim]  # type: ignore[no-any-return]


def _flash_attention_forward(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """FlashAttention 2, as transformers calls it: windows and caps are no tensors."""
    return _flash(query, key, value, dropout, True, scaling).transpose(1, 2), None


def _dropout(
    input: torch.Tensor, p: float = 0.5, training: bool = True, inplace: bool = False
) -> torch.Tensor:
    """A GPU draws, scales and keeps one byte an element in one kernel (`Dropout.cpp`)."""
    if not training or not p:
        return input
    result: torch.Tensor = torch.ops.aten.native_dropout(input, p, True)[0]
    return result


def attention_workspace_bytes(name: str, tensors: Sequence[torch.Tensor]) -> int:
    """What a kernel takes and gives back at once.

    `flash_attn/flash_api.cpp`, `mha_bwd`: the gradient of queries is added up in fp32, and so is a
    sum for each query and head; of grouped keys and values each query head has a gradient of its
    own.

    Args:
        name: of the operation.
        tensors: that it is given: for backward the gradient of the output, query, key, value.
    """
    if name != "_scaled_dot_product_flash_attention_backward":
        return 0
    _, query, key = tensors[:3]
    workspace = _FP32_BYTES * (query.numel() + query.numel() // query.shape[-1])
    if key.shape[1] != query.shape[1]:
        workspace += 2 * query.element_size() * query.numel()
    return workspace
