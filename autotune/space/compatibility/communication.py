"""Checks buckets, overlap and ZeRO++ against the ranks, the device and the model."""

from __future__ import annotations

from autotune.knob_values import DEFAULT_BUCKET_SIZE
from autotune.machine.hardware import DeviceType, Hardware
from autotune.machine.software import Software
from autotune.question.workload import Workload
from autotune.space.strategy import Strategy

__all__ = ["conflict"]

_QUANTIZED_AT_ONCE = 8
"""Elements that DeepSpeed's quantizer takes together; it asserts that each piece is whole."""


def conflict(
    strategy: Strategy, workload: Workload, hardware: Hardware, software: Software
) -> str | None:
    """Why the question does not allow these knobs, in words; None where it does."""
    return (
        _buckets(strategy, workload)
        or _single_rank(strategy, hardware)
        or _quantized(strategy, workload, hardware, software)
        or _hierarchical(strategy, hardware)
    )


def _buckets(strategy: Strategy, workload: Workload) -> str | None:
    bucket = strategy.reduce_bucket_size
    trained = workload.num_trainable_parameters(strategy.lora_rank, strategy.lora_targets)
    if bucket == DEFAULT_BUCKET_SIZE or bucket < trained:
        return None
    return (
        f"reduce_bucket_size {bucket:,} is larger than the {trained:,} trained parameters: "
        f"use the default {DEFAULT_BUCKET_SIZE:,}, which does the same, or a smaller value"
    )


def _single_rank(strategy: Strategy, hardware: Hardware) -> str | None:
    if hardware.num_devices > 1:
        return None
    for knob, is_on in (
        ("overlap_comm false", not strategy.overlap_comm),
        ("zero_quantized_weights", strategy.zero_quantized_weights),
        ("zero_quantized_gradients", strategy.zero_quantized_gradients),
        ("zero_hpz_partition_size", strategy.zero_hpz_partition_size > 1),
    ):
        if is_on:
            return f"{knob} needs two ranks or more: a single rank sends nothing"
    return None


def _quantized(
    strategy: Strategy, workload: Workload, hardware: Hardware, software: Software
) -> str | None:
    if strategy.zero_quantized_gradients and hardware.num_nodes == 1:
        # `stage3.py`, `__avg_scatter_grads`: only with more ranks than the host has devices.
        return (
            "zero_quantized_gradients needs several hosts: within one host, "
            "DeepSpeed does not quantize gradients"
        )
    knobs = ("zero_quantized_weights", "zero_quantized_gradients")
    knob = next((knob for knob in knobs if getattr(strategy, knob)), None)
    if knob is None:
        return None
    if hardware.device_type is not DeviceType.CUDA:
        return f"{knob} needs a GPU: DeepSpeed's quantizer is a CUDA kernel"
    if not (software.has_compiler and software.has_cuda_toolkit):
        return (
            f"{knob} needs a C++ compiler, ninja and the CUDA toolkit (nvcc), to compile "
            "DeepSpeed's quantizer"
        )
    model, ranks = workload.model, hardware.num_devices
    linears = [*model.attention_linears.values(), *model.mlp_linears.values()]
    sizes = [model.hidden_size, model.vocab_size * model.embedding_size]
    sizes += [inputs * outputs for inputs, outputs in linears]
    for size in sizes:
        if size % (_QUANTIZED_AT_ONCE * ranks):
            return (
                f"{knob}: {ranks} ranks do not divide a weight of {size:,} "
                f"elements of {model.name} into multiples of {_QUANTIZED_AT_ONCE}"
            )
    return None


def _hierarchical(strategy: Strategy, hardware: Hardware) -> str | None:
    size, ranks = strategy.zero_hpz_partition_size, hardware.num_devices
    if ranks % size:
        return f"zero_hpz_partition_size {size} does not divide the {ranks} ranks"
    return None
