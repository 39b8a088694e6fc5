"""Weights, optimizer states, gradients and buffers that DeepSpeed holds on one rank.

Read from DeepSpeed 0.19 (`runtime/zero/stage_1_and_2.py`, `runtime/zero/stage3.py`,
`runtime/fp16/unfused_optimizer.py`), after Rajbhandari et al., ZeRO (arXiv 1910.02054), section 3.
Does not know activations.
"""

from __future__ import annotations

from dataclasses import dataclass

from autotune.deepspeed_config import DEFAULT_BUCKET_ELEMENTS
from autotune.hardware import DeviceType, Hardware
from autotune.knobs import MasterWeights, Offload, Optimizer, Precision
from autotune.strategy import Strategy
from autotune.workload import Method, Workload

__all__ = ["States", "StatesModel", "element_bytes"]

_FP32 = 4

_SUB_GROUP_ELEMENTS = 1_000_000_000
"""ZeRO-3 steps through its partition in such groups (`zero/config.py`, `sub_group_size`)."""

_LIVE_ELEMENTS = 1_000_000_000
"""ZeRO-3 keeps so many gathered parameters at most (`zero/config.py`, `max_live_parameters`)."""

_NF4_BYTES = 0.516
"""4 bit, with an absmax of 8 bit for 64 weights and one of fp32 for 256 of those.

Dettmers et al., QLoRA (arXiv 2305.14314), section 3: double quantization.
"""

_MOMENT_8BIT_BYTES = 1 + _FP32 / 256
"""A byte, with an fp32 absmax for each block of 256 (bitsandbytes)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class States:
    """Bytes on the device of one rank, by how long they stay."""

    weights: int
    """Weights that compute, frozen ones too."""
    master_weights: int
    optimizer_states: int
    offload_buffers: int
    """Staging for what moves between device and host."""
    accumulated_gradients: int
    """Held from one micro-step to the next, and so on top of the activations."""
    buckets: int
    """Reduction buckets; from the first gradient of a micro-step on."""
    buckets_in_forward: int
    """The part of them that is there in forward already."""
    final_gradients: int
    """All gradients that are held when backward ends."""
    first_gradient: int
    """Of the output projection: the first and widest of backward."""
    gathered_weights: int
    """ZeRO-3's full weights of the layers at work, at most."""
    step_buffers: int
    """Copies of gradients made for the optimizer step, the gradients included."""
    init_buffers: int
    """Copies made while the engine is built, on top of `weights` alone."""


class StatesModel:
    """States of any strategy, for one workload on one machine."""

    def __init__(self, workload: Workload, hardware: Hardware) -> None:
        self._workload = workload
        self._num_ranks = hardware.num_devices
        self._device_bytes = hardware.device_memory_bytes
        self._is_cpu = hardware.device_type is DeviceType.CPU
        shape = workload.model
        self._num_parameters = shape.num_parameters
        self._linears = shape.num_hidden_layers * shape.linear_parameters_per_layer
        self._head = shape.vocab_size * shape.hidden_size
        self._sides = shape.num_lora_parameters(1, ("all-linear",))
        self._trainable: dict[int, int] = {}

    def num_trainable(self, lora_rank: int) -> int:
        """Parameters that the optimizer sees."""
        if lora_rank not in self._trainable:
            self._trainable[lora_rank] = self._workload.num_trainable_parameters(lora_rank)
        return self._trainable[lora_rank]

    def accumulation(self, strategy: Strategy) -> int:
        """Micro-steps of one optimizer step; 1 where the batch cannot be divided."""
        batch = self._workload.global_batch_size
        return max(1, strategy.gradient_accumulation_steps(batch, self._num_ranks))

    def of(self, strategy: Strategy) -> States:
        """What one strategy holds.

        On the CPU offloading moves nothing: the host's memory is the device's.
        """
        ranks, stage = self._num_ranks, strategy.zero_stage
        e = element_bytes(strategy)
        trained = self.num_trainable(strategy.lora_rank)
        owned = trained / ranks if stage else trained
        is_offloaded = strategy.offload_optimizer is Offload.CPU and not self._is_cpu
        master = _master_bytes(strategy)
        states = self._optimizer_bytes(strategy, trained)
        bucket = e * min(DEFAULT_BUCKET_ELEMENTS, trained) if stage else 0
        buckets = bucket * (2 if ranks > 1 or stage == 3 else 1)
        is_accumulating = self.accumulation(strategy) > 1
        held = self._held_gradients(strategy, is_accumulating) * e
        on_device = 0 if is_offloaded else 1
        # ZeRO-3 makes its bucket once; ZeRO-1 keeps it until the last micro-step.
        buckets_in_forward = bucket if stage == 3 else 0
        if stage == 1 and is_accumulating:
            buckets_in_forward = buckets
        return States(
            weights=int(self._weights(strategy, trained) / (ranks if stage == 3 else 1)),
            master_weights=int(master * owned) * on_device,
            optimizer_states=int(states * owned) * on_device,
            offload_buffers=e * self._head if is_offloaded and not strategy.lora_rank else 0,
            accumulated_gradients=int(held),
            buckets=buckets,
            buckets_in_forward=buckets_in_forward,
            final_gradients=int(self._final_gradients(strategy, is_accumulating) * e),
            first_gradient=0 if strategy.lora_rank else e * self._head,
            gathered_weights=e * min(self._num_parameters, _LIVE_ELEMENTS) if stage == 3 else 0,
            step_buffers=int(self._step_buffers(strategy, owned)) * on_device,
            init_buffers=int(self._init_buffers(strategy, owned) * on_device),
        )

    def _weights(self, strategy: Strategy, trained: int) -> float:
        e = element_bytes(strategy)
        adapters = trained if strategy.lora_rank else 0
        if self._workload.method is not Method.QLORA:
            return e * (self._num_parameters + adapters)
        return e * (self._num_parameters - self._linears + adapters) + _NF4_BYTES * self._linears

    def _optimizer_bytes(self, strategy: Strategy, trained: int) -> float:
        """Of the optimizer's states, for one parameter.

        Adafactor keeps a row and a column for each matrix: Shazeer and Stern (arXiv 1804.04235),
        section 3.
        """
        moment = 2 if strategy.master_weights is MasterWeights.BF16 else _FP32
        match strategy.optimizer:
            case Optimizer.ADAMW:
                return 2 * moment
            case Optimizer.ADAMW_8BIT:
                return 2 * _MOMENT_8BIT_BYTES
            case Optimizer.LION:
                return _FP32  # bitsandbytes keeps it so whatever the master's precision
            case Optimizer.LION_8BIT:
                return _MOMENT_8BIT_BYTES
            case Optimizer.SGD:
                return moment
            case Optimizer.ADAFACTOR:
                return _FP32 * 2 * self._sides / max(trained, 1)

    def _held_gradients(self, strategy: Strategy, is_accumulating: bool) -> float:
        """Elements of gradients on the device between two micro-steps.

        Stages 0 and 1 accumulate all of them and reduce at the last micro-step; stage 2 keeps this
        rank's part; stage 3 has a buffer for its part from the start.
        """
        trained = self.num_trainable(strategy.lora_rank)
        stage, is_offloaded = strategy.zero_stage, strategy.offload_optimizer is Offload.CPU
        if stage == 3:
            return 0.0 if is_offloaded and not self._is_cpu else trained / self._num_ranks
        if not is_accumulating or (stage == 2 and is_offloaded and not self._is_cpu):
            return 0.0
        return trained / self._num_ranks if stage == 2 else float(trained)

    def _final_gradients(self, strategy: Strategy, is_accumulating: bool) -> float:
        """Elements of gradients on the device when backward ends."""
        trained = self.num_trainable(strategy.lora_rank)
        part = trained / self._num_ranks
        held = self._held_gradients(strategy, is_accumulating)
        match strategy.zero_stage:
            case 0:
                return float(trained)
            case 1:
                # One rank reduces only after backward. With more, gradients lie in the buckets as
                # soon as they are made, except where micro-steps have accumulated them before.
                keeps_all = self._num_ranks == 1 or is_accumulating
                return trained if keeps_all else part
            case 2 if strategy.offload_optimizer is Offload.NONE or self._is_cpu:
                return held + part
        return held

    def _step_buffers(self, strategy: Strategy, owned: float) -> float:
        """Averaged gradients, their flat copy, and that copy in the master's precision.

        `stage_1_and_2.py`, `step`: all three are alive when the last is made: with bf16 and an
        fp32 master 2 + 2 + 4 bytes a parameter. `stage3.py`, `_prepare_fp32_grad_for_sub_group`:
        the same, by sub-groups, beside the gradient buffer. `unfused_optimizer.py`, `step`:
        gradients, and their fp32 copy.
        """
        e, master = element_bytes(strategy), _master_bytes(strategy)
        converted = master if master != e else 0
        if strategy.zero_stage == 0:
            needed = (e + converted) * owned
        elif strategy.zero_stage == 3:
            needed = e * owned + (e + converted) * min(owned, _SUB_GROUP_ELEMENTS)
        else:
            needed = (2 * e + converted) * owned
        if not self._is_cpu:
            return needed
        # torch's AdamW on the CPU is not fused: its denominator takes two more copies.
        return max(needed, 3 * max(master, e) * owned)

    def _init_buffers(self, strategy: Strategy, owned: float) -> float:
        """What building the engine needs beside the weights.

        Stages 1 and 2 flatten all weights into a copy, by way of the host where the device has no
        room for it, then clone their partition on its way to the master. Stages 0 and 3 take a
        first optimizer step over gradients of zeros.
        """
        e, master = element_bytes(strategy), _master_bytes(strategy)
        trained = self.num_trainable(strategy.lora_rank)
        if strategy.zero_stage in (1, 2):
            has_room = self._weights(strategy, trained) + e * trained < self._device_bytes
            return max(e * trained if has_room else 0, (e + master) * owned)
        return (2 * max(master, e) + self._optimizer_bytes(strategy, trained)) * owned


def element_bytes(strategy: Strategy) -> int:
    """Of one weight, gradient or activation in forward and backward."""
    return _FP32 if strategy.precision is Precision.FP32 else 2


def _master_bytes(strategy: Strategy) -> int:
    """Of one master weight; 0 where the optimizer updates the weights themselves."""
    if strategy.precision is Precision.FP32 and strategy.zero_stage == 0:
        return 0
    return 2 if strategy.master_weights is MasterWeights.BF16 else _FP32
