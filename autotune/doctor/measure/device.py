"""Rates of one device and of its host: products, copies, launches.

The same code for a GPU and for the CPU; only the sizes differ, so that neither takes long.
"""

from __future__ import annotations

import os

import torch

from autotune.doctor.measure.timing import seconds_of

__all__ = [
    "device_to_host_bytes_per_s",
    "host_memory_bytes_per_s",
    "host_to_device_bytes_per_s",
    "kernel_launch_s",
    "matmul_flops_per_s",
    "memory_bytes_per_s",
]

_MATRIX_SIDES = {"cuda": 8192, "cpu": 1024}
"""Large enough that the product's own rate is seen, and not the launch or the cache."""

_COPIED_BYTES = {"cuda": 2**29, "cpu": 2**27}
_TRANSFERRED_BYTES = 2**28
_SMALL_ELEMENTS = 16


def matmul_flops_per_s(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of the product of two square matrices: 2 n**3 operations."""
    side = _MATRIX_SIDES[device.type]
    left, right = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    product = torch.empty(side, side, device=device, dtype=dtype)
    return 2 * side**3 / seconds_of(lambda: torch.mm(left, right, out=product), device)


def memory_bytes_per_s(device: torch.device) -> float:
    """Bytes per second of copies within device memory: every byte is read and written."""
    source = torch.zeros(_COPIED_BYTES[device.type], dtype=torch.uint8, device=device)
    target = torch.zeros_like(source)
    return 2 * source.numel() / seconds_of(lambda: target.copy_(source), device)


def kernel_launch_s(device: torch.device) -> float:
    """Seconds to launch an addition of a few numbers that autograd records."""
    leaf = torch.zeros(_SMALL_ELEMENTS, device=device, requires_grad=True)
    return seconds_of(lambda: leaf.add(1.0), device)


def host_to_device_bytes_per_s(device: torch.device) -> float:
    """Bytes per second of copies from pinned memory."""
    on_host, on_device = _pinned_and_device(device)
    return on_host.numel() / seconds_of(
        lambda: on_device.copy_(on_host, non_blocking=True), device
    )


def device_to_host_bytes_per_s(device: torch.device) -> float:
    """Bytes per second of copies to pinned memory."""
    on_host, on_device = _pinned_and_device(device)
    return on_host.numel() / seconds_of(
        lambda: on_host.copy_(on_device, non_blocking=True), device
    )


def host_memory_bytes_per_s() -> float:
    """Bytes per second of copies within host memory by all cores."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(os.cpu_count() or 1)
    try:
        return memory_bytes_per_s(torch.device("cpu"))
    finally:
        torch.set_num_threads(num_threads)


def _pinned_and_device(device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    on_host = torch.zeros(_TRANSFERRED_BYTES, dtype=torch.uint8, pin_memory=True)
    return on_host, torch.zeros(_TRANSFERRED_BYTES, dtype=torch.uint8, device=device)
