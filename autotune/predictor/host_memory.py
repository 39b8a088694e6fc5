"""What offloaded states and weights take of the host's memory, of all ranks together.

Read from DeepSpeed 0.19.8 (`runtime/zero/stage_1_and_2.py`, `stage3.py`, `ops/adam/cpu_adam.py`,
`runtime/swap_tensor/`). Counts live tensors alone: processes and what is pinned for a moment come
on top, so it is the least. Does not know activations.
"""

from __future__ import annotations

from collections.abc import Iterator

from autotune.knobs import MasterWeights, Offload
from autotune.predictor.arithmetic import next_power_of_2
from autotune.predictor.precision import FP32_BYTES, element_bytes, master_bytes
from autotune.question.workload import Workload
from autotune.space.deepspeed_config import stepped_elements
from autotune.space.strategy import Strategy

__all__ = ["offloaded_bytes"]


def offloaded_bytes(
    workload: Workload, strategy: Strategy, num_ranks: int, accumulation: int
) -> float:
    """Host memory in bytes, of all ranks together; 0 where nothing is offloaded.

    Args:
        workload: what is trained.
        strategy: of any kind.
        num_ranks: of all hosts.
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
        # One sub-group of master weights, moments and gradients passes through at a time.
        sub_group = stepped_elements(workload, strategy, num_ranks)
        total += 4 * FP32_BYTES * min(sub_group * num_ranks, trained)
    return total + _weights(workload, strategy, num_ranks, trained)


def _flat_states(workload: Workload, strategy: Strategy, part: float) -> float:
    """Of one rank under ZeRO-1 and ZeRO-2, which make one flat tensor of its part.

    Pinned: master weights, their gradients, the weights on their way back, and the largest
    weight's gradient. Not pinned: both moments.
    """
    weight, master = element_bytes(strategy), master_bytes(strategy)
    largest = 0 if strategy.lora_rank else workload.model.largest_weight
    pinned = 2 * _pinned(master * part) + _pinned(weight * part)
    pinned += _pinned(weight * largest / strategy.tensor_parallel_size)
    return pinned + 2 * master * part


def _states_in_sub_groups(
    workload: Workload, strategy: Strategy, num_ranks: int, part: float
) -> float:
    """Of one rank under ZeRO-3.

    Pinned: gradients, sub-group by sub-group for the step and in one piece of the weights' dtype
    for accumulation. Not pinned: master weights and both moments. A ratio is of sub-groups.
    """
    sub_group = stepped_elements(workload, strategy, num_ranks)
    master = master_bytes(strategy)
    num_whole, rest = divmod(part, sub_group)
    gradients = num_whole * _pinned(master * sub_group) + _pinned(master * rest)
    stepped = strategy.offload_ratio * (3 * master * part + gradients)
    return stepped + _pinned(element_bytes(strategy) * part)


def _accumulated_gradients(workload: Workload, strategy: Strategy, trained: int) -> float:
    """Of all ranks under ZeRO-2: one pinned tensor a weight, between micro-steps.

    ZeRO-1 accumulates on the device, masters in bf16 in their own gradients.
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
    """Offloaded parameters of ZeRO-3: those that are trained are one flat pinned tensor."""
    weight, model = element_bytes(strategy), workload.model
    if strategy.offload_param is Offload.CPU:
        frozen = model.num_parameters if strategy.lora_rank else 0
        return num_ranks * _pinned(weight * trained / num_ranks) + weight * frozen
    if strategy.offload_param is Offload.NVME:
        # Five buffers of the largest weight's part, and one for the weights of a whole sub-group.
        sub_group = stepped_elements(workload, strategy, num_ranks)
        one_of_all = num_ranks * weight * min(sub_group * num_ranks, trained)
        return 5 * weight * model.largest_weight + one_of_all
    return 0.0


def _large_weights(workload: Workload) -> Iterator[tuple[int, int]]:
    """Elements of each weight that is no vector, and how many there are of it."""
    shape = workload.model
    for inputs, outputs in shape.attention_linears.values():
        yield inputs * outputs, shape.num_hidden_layers
    for inputs, outputs in shape.mlp_linears.values():
        yield inputs * outputs * shape.num_experts, shape.num_hidden_layers
    yield shape.embedding_parameters, 1
    yield shape.lm_head_parameters, 1


def _pinned(num_bytes: float) -> float:
    """PyTorch pins powers of two (`ATen/core/CachingHostAllocator.h`)."""
    return float(next_power_of_2(num_bytes)) if num_bytes > 1 else 0.0
