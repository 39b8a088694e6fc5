"""Host memory of a strategy: offloaded tensors, processes, and the save of a checkpoint.

Read from DeepSpeed 0.19.8 (`runtime/zero/stage_1_and_2.py`, `stage3.py`,
`partition_parameters.py`, `runtime/engine.py`, `ops/adam/cpu_adam.py`, `runtime/swap_tensor/`).
Does not know activations.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

from autotune.knob_values import MasterWeights, Offload
from autotune.predictor.arithmetic import next_power_of_2
from autotune.predictor.memory.precision import FP32_BYTES, element_bytes, master_bytes
from autotune.predictor.memory.sharding import zero_size
from autotune.question.workload import ModelShape, Workload
from autotune.space.deepspeed_config import stepped_elements
from autotune.space.strategy import Strategy

__all__ = ["HostMemory", "host_memory", "offloaded_bytes", "pooled_bytes", "saved_bytes"]

_GIB = 2**30

_PROCESS_BYTES = int(0.65 * _GIB)
_PROCESS_UPPER_BYTES = 3 * _GIB
"""Host memory of a rank beside tensors once it has used a GPU: 0.60 to 0.70 GiB in eight trials on
one H100. The upper bound allows for a Python process of its own as well."""

_UNCERTAINTY = 0.05
"""Uncertainty of the offloaded bytes, upwards, as a fraction of them."""

_UNCERTAINTY_ON_DISK = 0.5
"""Uncertainty of the offloaded bytes if a part is on disk, as a fraction of them: the buffers on
the host were never measured."""


@dataclass(frozen=True, kw_only=True, slots=True)
class HostMemory:
    """Host memory of all ranks of one host, in bytes; if nothing is offloaded, 0 except `save`.

    The bounds hold for training; the upper one allows for any way of saving as well.
    """

    expected: int
    lower: int
    upper: int
    save: int
    """Bytes that `save_checkpoint` adds while it runs."""


def host_memory(
    workload: Workload,
    strategy: Strategy,
    *,
    num_ranks: int,
    num_nodes: int,
    accumulation: int,
    activations: int,
) -> HostMemory:
    """Host memory of a strategy on each host.

    Args:
        workload: what is trained.
        strategy: any strategy.
        num_ranks: ranks of all hosts.
        num_nodes: hosts, each with the same number of ranks.
        accumulation: micro-steps of one optimizer step.
        activations: bytes of offloaded activations, of all ranks together.
    """
    save, gathered = saved_bytes(workload, strategy, num_ranks, num_nodes)
    live = offloaded_bytes(workload, strategy, num_ranks, accumulation) + activations
    if not live:
        return HostMemory(expected=0, lower=0, upper=0, save=int(save))
    live, ranks = live / num_nodes, num_ranks // num_nodes
    pooled = pooled_bytes(workload, strategy, num_ranks) / num_nodes
    uncertainty = _UNCERTAINTY_ON_DISK if strategy.uses_nvme else _UNCERTAINTY
    lower = live * (1 - (uncertainty if strategy.uses_nvme else 0))
    expected = live + pooled + ranks * _PROCESS_BYTES
    upper = (1 + uncertainty) * (live + pooled) + ranks * _PROCESS_UPPER_BYTES
    return HostMemory(
        expected=int(expected),
        lower=int(lower),
        upper=int(upper + max(save, gathered)),
        save=int(save),
    )


def saved_bytes(
    workload: Workload, strategy: Strategy, num_ranks: int, num_nodes: int
) -> tuple[float, float]:
    """Bytes that saving adds on rank 0's host: by `save_checkpoint`, and by whole 16-bit weights.

    `torch.save` copies tensors of a device to the host one storage at a time, and writes tensors
    of the host without a copy; all ranks do so at once. Rank 0 gathers whole weights if the user
    asks for it (`stage3_gather_16bit_weights_on_model_save`, `save_16bit_model`).
    """
    ranks = num_ranks // num_nodes
    own = zero_size(strategy, num_ranks)
    weight, stage = element_bytes(strategy), strategy.zero_stage
    model = workload.model.num_held_parameters / strategy.pipeline_parallel_size
    model /= strategy.tensor_parallel_size
    trained: float = workload.num_trainable_parameters(strategy.lora_rank, strategy.lora_targets)
    trained /= strategy.pipeline_parallel_size
    trained /= 1 if strategy.lora_rank else strategy.tensor_parallel_size
    largest = workload.model.largest_weight / strategy.tensor_parallel_size
    # Under ZeRO-1 and 2, each rank's master weights are one storage, and so is each moment. All
    # trained weights are one more, which rank 0 writes.
    states = FP32_BYTES * trained / own
    first = weight * max(trained, largest)
    frozen = 0.0
    if stage == 0:
        states, first = 0.0, FP32_BYTES * largest
    elif stage == 3:
        states = FP32_BYTES * min(trained / own, stepped_elements(workload, strategy, num_ranks))
        first = 0.0
        if strategy.lora_rank and strategy.offload_param is Offload.NONE:
            frozen = weight * model / own
    if strategy.offload_optimizer is not Offload.NONE and strategy.offload_ratio == 1:
        states = 0.0
    save = max(first, states + frozen) + (ranks - 1) * (states + frozen)
    is_divided = stage == 3 or strategy.tensor_parallel_size > 1
    gathered = float(weight * workload.model.num_held_parameters) if is_divided else 0.0
    return save, gathered


def pooled_bytes(workload: Workload, strategy: Strategy, num_ranks: int) -> float:
    """Bytes of pinned memory of all ranks that PyTorch keeps after its tensors were freed.

    `_partition_param` pins this rank's partition of each weight separately, and
    `_move_to_flat_buffer` frees them. PyTorch keeps freed blocks for tensors of the same size
    (`ATen/core/CachingHostAllocator.h`).
    """
    if strategy.offload_param is not Offload.CPU or strategy.lora_rank:
        return 0.0
    return num_ranks * _pinned_one_by_one(workload.model, element_bytes(strategy), num_ranks)


def offloaded_bytes(
    workload: Workload, strategy: Strategy, num_ranks: int, accumulation: int
) -> float:
    """Bytes of offloaded tensors, of all ranks together; 0 if nothing is offloaded.

    Args:
        workload: what is trained.
        strategy: any strategy.
        num_ranks: ranks of all hosts.
        accumulation: micro-steps of one optimizer step.
    """
    if strategy.offload_optimizer is strategy.offload_param is Offload.NONE:
        return 0.0
    trained = workload.num_trainable_parameters(strategy.lora_rank, strategy.lora_targets)
    total = 0.0
    if strategy.offload_optimizer is Offload.CPU:
        part = trained / num_ranks
        if strategy.zero_stage == 3:
            total += num_ranks * _states_in_sub_groups(workload, strategy, num_ranks, part)
        else:
            total += num_ranks * _flat_states(workload, strategy, part)
            if strategy.zero_stage == 2 and accumulation > 1:
                total += _accumulated_gradients(workload, strategy, trained)
    elif strategy.offload_optimizer is Offload.NVME:
        # The host holds one sub-group of master weights, moments and gradients at a time.
        sub_group = stepped_elements(workload, strategy, num_ranks)
        total += 4 * FP32_BYTES * min(sub_group * num_ranks, trained)
    return total + _weights(workload, strategy, num_ranks, trained)


def _flat_states(workload: Workload, strategy: Strategy, part: float) -> float:
    """Bytes on the host of one rank under ZeRO-1 or ZeRO-2, whose partition is one flat tensor.

    Pinned are master weights, their gradients, the weights that are copied back, and the gradient
    of the largest weight. Both moments are not pinned.
    """
    weight, master = element_bytes(strategy), master_bytes(strategy)
    largest = 0 if strategy.lora_rank else workload.model.largest_weight
    pinned = 2 * _pinned(master * part) + _pinned(weight * part)
    pinned += _pinned(weight * largest / strategy.tensor_parallel_size)
    return pinned + 2 * master * part


def _states_in_sub_groups(
    workload: Workload, strategy: Strategy, num_ranks: int, part: float
) -> float:
    """Bytes on the host of one rank under ZeRO-3.

    Pinned are gradients: sub-group by sub-group for the step, and in one piece in the weights'
    dtype for accumulation. Master weights and both moments are not pinned. `offload_ratio` is the
    fraction of sub-groups that are offloaded; the first ones stay on the device.
    """
    master = master_bytes(strategy)
    groups = _sub_groups(workload, strategy, num_ranks, part)
    on_host = groups[int((1 - strategy.offload_ratio) * len(groups)) :]
    stepped = sum(3 * master * num + _pinned(master * num) for num in on_host)
    return stepped + _pinned(element_bytes(strategy) * part)


def _sub_groups(
    workload: Workload, strategy: Strategy, num_ranks: int, part: float
) -> tuple[float, ...]:
    """Elements of a rank's partition in each sub-group (`_create_fp16_sub_groups`)."""
    most = stepped_elements(workload, strategy, num_ranks)
    if not strategy.lora_rank:
        return _filled(workload.model, num_ranks, most)
    num_whole, rest = divmod(part, most)
    return (most,) * int(num_whole) + ((rest,) if rest else ())


@lru_cache
def _filled(model: ModelShape, num_ranks: int, most: int) -> tuple[float, ...]:
    groups = [0.0]
    for elements in _weights_in_order(model):
        if groups[-1] >= most:
            groups.append(0.0)
        groups[-1] += elements / num_ranks
    # Vectors are small, and spread over all groups.
    scale = model.num_parameters / num_ranks / sum(groups)
    return tuple(scale * num for num in groups)


def _weights_in_order(model: ModelShape) -> Iterator[int]:
    """Elements of each weight matrix, in the order in which modules are created."""
    yield model.embedding_parameters
    layer = [inputs * outputs for inputs, outputs in model.attention_linears.values()]
    layer += [i * o * model.num_experts for i, o in model.mlp_linears.values()]
    for _ in range(model.num_hidden_layers):
        yield from layer
    if model.lm_head_parameters:
        yield model.lm_head_parameters


@lru_cache
def _pinned_one_by_one(model: ModelShape, weight_bytes: int, num_ranks: int) -> float:
    """Bytes of one rank: its partition of each weight matrix, pinned separately."""
    return sum(_pinned(weight_bytes * num / num_ranks) for num in _weights_in_order(model))


def _accumulated_gradients(workload: Workload, strategy: Strategy, trained: int) -> float:
    """Bytes of accumulated gradients of all ranks under ZeRO-2: one pinned tensor for each weight.

    ZeRO-1 accumulates on the device. With master weights in bf16, gradients accumulate in the
    masters' own gradients.
    """
    if strategy.master_weights is MasterWeights.BF16:
        return 0.0
    weight, tensor = element_bytes(strategy), strategy.tensor_parallel_size
    if strategy.lora_rank:
        return float(weight * trained)
    return sum(
        count * tensor * _pinned(weight * elements / tensor)
        for elements, count in _large_weights(workload)
    )


def _weights(workload: Workload, strategy: Strategy, num_ranks: int, trained: int) -> float:
    """Bytes of ZeRO-3's offloaded parameters; the trained ones are one flat pinned tensor."""
    weight, model = element_bytes(strategy), workload.model
    if strategy.offload_param is Offload.CPU:
        # Frozen weights stay pinned one by one.
        frozen = _pinned_one_by_one(model, weight, num_ranks) if strategy.lora_rank else 0
        return num_ranks * (_pinned(weight * trained / num_ranks) + frozen)
    if strategy.offload_param is Offload.NVME:
        # Five buffers for the largest weight's partition, and one for a whole sub-group's weights.
        sub_group = stepped_elements(workload, strategy, num_ranks)
        one_of_all = num_ranks * weight * min(sub_group * num_ranks, trained)
        return 5 * weight * model.largest_weight + one_of_all
    return 0.0


def _large_weights(workload: Workload) -> Iterator[tuple[int, int]]:
    """Elements of each kind of weight matrix, and how many matrices there are of it."""
    shape = workload.model
    for inputs, outputs in shape.attention_linears.values():
        yield inputs * outputs, shape.num_hidden_layers
    for inputs, outputs in shape.mlp_linears.values():
        yield inputs * outputs * shape.num_experts, shape.num_hidden_layers
    yield shape.embedding_parameters, 1
    yield shape.lm_head_parameters, 1


def _pinned(num_bytes: float) -> float:
    """Bytes that PyTorch pins for a tensor: powers of two (`ATen/core/CachingHostAllocator.h`)."""
    return float(next_power_of_2(num_bytes)) if num_bytes > 1 else 0.0
