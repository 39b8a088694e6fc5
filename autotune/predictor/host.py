"""The least time that the host takes to launch a micro-step's work on a GPU.

Python, launches and DeepSpeed's hooks. Does not know how long the device works.
"""

from __future__ import annotations

from autotune.adapter_targets import ADAPTER_GROUPS, has_adapter
from autotune.hardware import DeviceType, Hardware
from autotune.predictor.work import repeats
from autotune.strategy import Strategy
from autotune.workload import Method, Workload

__all__ = ["HostModel"]

_S_PER_LAYER = 0.006
"""Forward, backward and the layer's part of an optimizer step.

Measured: 1.1 billion parameters, 22 layers, micro-batch 2 to 4, one H100: 0.155 s a step.
"""

_ZERO3_FACTOR = 3.5
"""ZeRO-3 gathers and releases in hooks of every module.

Measured: 17,500 tokens/s as above, taken to be at micro-batch 8 of 1,024 tokens.
"""

_LAYER_MS = 0.52 + 0.87 + 0.46
_STEP_SHARE = 0.46 / _LAYER_MS
_ADAPTER_SHARES = (0.47 / 7 / _LAYER_MS, 0.37 / 7 / _LAYER_MS)
_ADAPTER_SHARES_ZERO3 = (4.71 / 7 / _LAYER_MS, 2.30 / 7 / _LAYER_MS)
_4BIT_SHARES = (1.36 / 7 / _LAYER_MS, 0.83 / 7 / _LAYER_MS)
"""What a linear layer adds in forward and backward by its adapter, and by being of 4 bit, as parts
of what a layer takes in forward, backward and step.

Measured on a core of a CPU with tensors of no size, where there is nothing but the host's work:
Llamas of 2 and of 10 layers under DeepSpeed 0.19.8 with PEFT 0.21 and bitsandbytes 0.50. A layer
took 0.52, 0.87 and 0.46 ms; with adapters 0.99 and 1.24, on 4 bit 2.35 and 2.07. Under ZeRO-3 3.40
and 2.96, with adapters, whose three modules have hooks of their own, 8.11 and 5.26.
"""


class HostModel:
    """Host time of any strategy, for one workload on one machine."""

    def __init__(self, workload: Workload, hardware: Hardware) -> None:
        self._workload = workload
        self._is_cpu = hardware.device_type is DeviceType.CPU
        self._adapted: dict[str, int] = {}
        shape = workload.model
        self._num_linears = len(shape.attention_linears) + len(shape.mlp_linears)

    def micro_step_s(self, strategy: Strategy, num_layers: int, accumulation: int) -> float:
        """Seconds to launch one micro-step of so many layers; 0 on the CPU, which is the host."""
        if self._is_cpu:
            return 0.0
        times = repeats(strategy)
        # Forward is a third of forward and backward.
        again = (times.attention + times.mlp) / 2
        factor = 1 + again / 3
        if strategy.zero_stage == 3:
            factor *= _ZERO3_FACTOR
        if strategy.lora_rank:
            shares = _ADAPTER_SHARES_ZERO3 if strategy.zero_stage == 3 else _ADAPTER_SHARES
            factor += self._num_adapted(strategy) * ((1 + again) * shares[0] + shares[1])
            # The optimizer's part comes once a step. Of whole models the measured time is kept.
            factor -= _STEP_SHARE * (1 - 1 / accumulation)
        if self._workload.method is Method.QLORA:
            in_forward, in_backward = _4BIT_SHARES
            factor += self._num_linears * ((1 + again) * in_forward + in_backward)
        return num_layers * _S_PER_LAYER * factor

    def _num_adapted(self, strategy: Strategy) -> int:
        """Linear layers of one decoder layer that have adapters."""
        key = strategy.lora_targets
        if key not in self._adapted:
            targets = self._workload.adapter_targets(key)
            linears = self._workload.model.adapter_linears
            self._adapted[key] = sum(
                has_adapter(name, group, targets)
                for group in ADAPTER_GROUPS
                for name in linears[group]
            )
        return self._adapted[key]
