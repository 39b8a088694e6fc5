"""Time of one optimizer step: a roofline of matrix products, memory traffic, links and the host.

Williams et al., Roofline (CACM 52(4), 2009), taken as a sum over kinds of work, since kernels of
one kind run after those of another. Does not know memory capacity.
"""

from __future__ import annotations

from dataclasses import dataclass

from autotune.hardware import DeviceType, Hardware
from autotune.knobs import MasterWeights, Offload, Optimizer, Precision
from autotune.predictor.activations import experts_per_token
from autotune.predictor.states import StatesModel, element_bytes
from autotune.strategy import Strategy
from autotune.workload import Method, Workload

__all__ = ["TimeModel"]

_MATMUL_FRACTION = 0.70
_ATTENTION_FRACTION = 0.30
_BANDWIDTH_FRACTION = 0.60
"""Attained parts of the peak rates. Measured: Llamas of 1.1 to 13 billion on one H100."""

_FP32_SLOWDOWN = 2.0
"""Matrix products in TF32 or fp32 against 16 bit; far more on devices without TF32."""

_HOST_S_PER_LAYER = 0.006
"""Least time of forward and backward through a layer: Python, launches, DeepSpeed's hooks.

Measured: 1.1 billion parameters, 22 layers, micro-batch 2 to 4, one H100: 0.155 s a step.
"""

_ZERO3_HOST_FACTOR = 3.5
"""ZeRO-3 gathers and releases in hooks of every module.

Measured: 17,500 tokens/s as above, taken to be at micro-batch 8 of 1,024 tokens.
"""

_ADAFACTOR_S_PER_LAYER = 0.0018
"""torch's Adafactor waits for the device at every tensor.

Measured: 31,900 tokens/s at micro-batch 8, against 38,300 of AdamW.
"""

_PCIE_BYTES_PER_S = 25e9
"""Pinned copies over PCIe 4.0 x16, of 31.5 GB/s peak."""

_HOST_BYTES_PER_S = 100e9
"""Memory bandwidth of a server's socket, shared by the ranks' CPU Adam."""

_CPU_ADAM_BYTES = 30
"""A parameter: weight, gradient and moments read, weight and moments written, bf16 copy."""

_NVLINK_BYTES_PER_S = 150e9
_PCIE_LINK_BYTES_PER_S = 15e9
_LOOPBACK_BYTES_PER_S = 1e9
"""Attained by collectives: between GPUs with HBM, other GPUs, processes on the CPU."""

_HBM_BYTES_PER_S = 1.5e12
"""Above this bandwidth a GPU is of the kind that has NVLink."""

_EXPOSED_SHARE = 0.5
"""Part of the gradients' communication that backward does not hide (`overlap_comm`)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _TokenWork:
    """What one token costs on its way there and back."""

    matmul_flops: float
    attention_flops: float
    traffic_bytes: float


class TimeModel:
    """Step time of any strategy, for one workload on one machine."""

    def __init__(self, workload: Workload, hardware: Hardware) -> None:
        self._workload = workload
        self._hardware = hardware
        self._states = StatesModel(workload, hardware)
        shape = workload.model
        idle = shape.num_experts - experts_per_token(shape)
        idle_weights = idle * sum(i * o for i, o in shape.mlp_linears.values())
        self._layers_weights = shape.num_hidden_layers * (
            shape.linear_parameters_per_layer - idle_weights
        )
        self._head_weights = shape.vocab_size * shape.hidden_size
        self._num_parameters = shape.num_parameters
        self._works: dict[tuple[int, bool, bool, int], _TokenWork] = {}

    def step_time_s(self, strategy: Strategy) -> float:
        """Seconds of one optimizer step, all its micro-steps, the slowest rank."""
        accumulation = self._states.accumulation(strategy)
        micro_step = max(self._device_s(strategy), self._host_s(strategy))
        return (
            accumulation * (micro_step + self._micro_link_s(strategy))
            + self._optimizer_s(strategy)
            + self._step_link_s(strategy)
        )

    def _device_s(self, strategy: Strategy) -> float:
        """Forward and backward of one micro-batch on the device."""
        work = self._work(strategy)
        tokens = strategy.micro_batch_size * self._workload.seq_len
        rate = self._hardware.flops_per_s
        if strategy.precision is Precision.FP32 and self._hardware.device_type is DeviceType.CUDA:
            rate /= _FP32_SLOWDOWN
        flops_s = work.matmul_flops / _MATMUL_FRACTION + work.attention_flops / _ATTENTION_FRACTION
        traffic = tokens * work.traffic_bytes
        if self._workload.method is Method.QLORA:
            # Each pass reads 4 bit and writes, then reads, 16 bit of every weight.
            passes = 3 if strategy.checkpoint_interval else 2
            traffic += passes * 4.5 * self._layers_weights
        return tokens * flops_s / rate + traffic / self._bandwidth

    def _host_s(self, strategy: Strategy) -> float:
        """The least time that the host takes to launch a micro-step's work on a GPU."""
        if self._hardware.device_type is DeviceType.CPU:
            return 0.0
        factor = _ZERO3_HOST_FACTOR if strategy.zero_stage == 3 else 1.0
        passes = 4 / 3 if strategy.checkpoint_interval else 1.0
        return self._workload.model.num_hidden_layers * _HOST_S_PER_LAYER * factor * passes

    @property
    def _bandwidth(self) -> float:
        return self._hardware.memory_bytes_per_s * _BANDWIDTH_FRACTION

    def _work(self, strategy: Strategy) -> _TokenWork:
        key = (
            element_bytes(strategy),
            strategy.fused_kernels,
            strategy.checkpoint_interval > 0,
            strategy.lora_rank,
        )
        if key not in self._works:
            self._works[key] = self._count(strategy)
        return self._works[key]

    def _count(self, strategy: Strategy) -> _TokenWork:
        """Floating point operations and bytes of one token, forward and backward.

        Two operations a weight in forward, two for the gradient of the input, two for that of the
        weight, which frozen weights do not need: Kaplan et al. (arXiv 2001.08361), section 2.1.
        Causal attention does 2 s q forward in a layer, and backward five products for two: Dao,
        FlashAttention-2 (arXiv 2307.08691), section 4.1. Checkpointing repeats a layer's forward.
        """
        shape = self._workload.model
        repeats = 1 if strategy.checkpoint_interval else 0
        per_weight = 4 if strategy.lora_rank else 6
        adapters = self._states.num_trainable(strategy.lora_rank) if strategy.lora_rank else 0
        matmul = (
            (per_weight + 2 * repeats) * self._layers_weights
            + per_weight * self._head_weights
            + (6 + 2 * repeats) * adapters
        )
        queries = shape.num_attention_heads * shape.head_dim
        attention = (
            (2 + 5 + 2 * repeats) * self._workload.seq_len * queries * shape.num_hidden_layers
        )
        layer = self._layer_traffic(strategy.fused_kernels) * element_bytes(strategy) / 2
        # The loss: logits written, read as fp32, exponentiated, and the same for their gradient.
        loss = (8 if strategy.fused_kernels else 40) * shape.vocab_size
        traffic = (3 + repeats) * layer * shape.num_hidden_layers + loss
        return _TokenWork(matmul_flops=matmul, attention_flops=attention, traffic_bytes=traffic)

    def _layer_traffic(self, has_fused_kernels: bool) -> float:
        """Bytes that a layer's pointwise kernels move for one token in one forward, at 16 bit.

        Counted operation by operation: RMSNorm 36 h as six kernels of transformers, 4 h as one
        of Liger's; rotary embedding 20 and 4 bytes an element; SwiGLU 10 and 6; residuals 12 h.
        """
        shape = self._workload.model
        h, f = shape.hidden_size, shape.intermediate_size * experts_per_token(shape)
        rotated = (shape.num_attention_heads + shape.num_key_value_heads) * shape.head_dim
        if not shape.has_gated_mlp:
            return 2 * 4 * h + 12 * h + 4 * f
        if has_fused_kernels:
            return 2 * 4 * h + 4 * rotated + 6 * f + 12 * h
        return 2 * 36 * h + 20 * rotated + 10 * f + 12 * h

    def _optimizer_s(self, strategy: Strategy) -> float:
        """Copies, clipping and the update, of this rank's parameters.

        Bytes a parameter as `stage_1_and_2.py`, `step`, moves them: flattening 4, conversion 6,
        norm 2, clipping 8, AdamW 28, copying back 6, all less with smaller masters and states.
        """
        trained = self._states.num_trainable(strategy.lora_rank)
        owned = trained / self._hardware.num_devices if strategy.zero_stage else trained
        if strategy.offload_optimizer is Offload.CPU:
            host = _HOST_BYTES_PER_S / self._hardware.num_devices
            return owned * (_CPU_ADAM_BYTES / host + 2 * 2 / _PCIE_BYTES_PER_S)
        per_parameter = 28 if strategy.master_weights is MasterWeights.BF16 else 54
        if strategy.optimizer is not Optimizer.ADAMW:
            per_parameter -= 12
        seconds = owned * per_parameter / self._bandwidth
        if strategy.optimizer is Optimizer.ADAFACTOR:
            seconds += _ADAFACTOR_S_PER_LAYER * self._workload.model.num_hidden_layers
        return seconds

    @property
    def _link_bytes_per_s(self) -> float:
        if self._hardware.device_type is DeviceType.CPU:
            return _LOOPBACK_BYTES_PER_S
        has_nvlink = self._hardware.memory_bytes_per_s >= _HBM_BYTES_PER_S
        return _NVLINK_BYTES_PER_S if has_nvlink else _PCIE_LINK_BYTES_PER_S

    def _micro_link_s(self, strategy: Strategy) -> float:
        """Communication of every micro-step.

        ZeRO (arXiv 1910.02054), section 7: stages 2 and 3 reduce-scatter gradients, and stage 3
        gathers the weights in forward and again in backward.
        """
        if strategy.zero_stage < 2:
            return 0.0
        e = element_bytes(strategy)
        elements = _EXPOSED_SHARE * self._states.num_trainable(strategy.lora_rank)
        if strategy.zero_stage == 3:
            elements += 2 * _EXPOSED_SHARE * self._num_parameters
        return self._ring_s(e * elements)

    def _step_link_s(self, strategy: Strategy) -> float:
        """Communication once a step: stages 0 and 1 reduce, stages 1 and 2 gather what is new."""
        e = element_bytes(strategy)
        trained = self._states.num_trainable(strategy.lora_rank)
        passes = {0: 2.0, 1: 2 * _EXPOSED_SHARE + 1, 2: 1.0, 3: 0.0}[strategy.zero_stage]
        return self._ring_s(passes * e * trained)

    def _ring_s(self, num_bytes: float) -> float:
        """A reduce-scatter or an all-gather over a ring: (n - 1) / n of the bytes pass each link.

        Patarasuk and Yuan, Bandwidth optimal all-reduce (JPDC 69(2), 2009).
        """
        ranks = self._hardware.num_devices
        return num_bytes * (ranks - 1) / ranks / self._link_bytes_per_s
