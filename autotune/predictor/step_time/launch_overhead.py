"""The least time that the host takes to launch a step's work on a GPU.

It consists of Python, launches and DeepSpeed's hooks. Does not know how long the device works.

The times of its parts were measured on one CPU core (the reference core) with empty tensors, so
that only the host works: Llamas of 2 and 10 layers under DeepSpeed 0.19.8 with PEFT 0.21 and
bitsandbytes 0.50. On another host they are scaled by its time to launch a small kernel.
"""

from __future__ import annotations

from dataclasses import dataclass

from autotune.knob_values import Offload
from autotune.machine.hardware import Hardware
from autotune.predictor.memory.sharding import zero_size
from autotune.predictor.step_time.communication import tensor_sums
from autotune.predictor.step_time.effective_rates import REFERENCE_LAUNCH_S, effective_rates
from autotune.predictor.step_time.expert_work import RoutedExperts
from autotune.predictor.step_time.layer_kernels import layer_kernels
from autotune.predictor.step_time.operation_counts import Repeats, repeats
from autotune.question.adapter_targets import ADAPTER_GROUPS, has_adapter
from autotune.question.workload import Method, Workload
from autotune.space.deepspeed_config import flattens_parameters
from autotune.space.optimizers import OPTIMIZERS
from autotune.space.strategy import Strategy

__all__ = ["LaunchOverheadModel"]


@dataclass(frozen=True, kw_only=True, slots=True)
class _LayerTime:
    """Seconds of a decoder layer with seven linear layers on the reference core."""

    forward_s: float
    backward_s: float


_PLAIN = _LayerTime(forward_s=0.52e-3, backward_s=0.87e-3)
_ADAPTERS = _LayerTime(forward_s=0.47e-3, backward_s=0.37e-3)
"""Additional launch time if all seven linear layers have adapters."""

_4BIT = _LayerTime(forward_s=1.36e-3, backward_s=0.83e-3)
"""Additional launch time if all seven linear layers are in 4 bit."""

_ZERO3 = _LayerTime(forward_s=2.70e-3, backward_s=2.38e-3)
"""Launch time with ZeRO-3, instead of `_PLAIN`: hooks of every module gather and release its
weights. It is the CPU time of the thread. With a process group that sends nothing, two ranks take
no longer than one."""

_ZERO3_ADAPTERS = _LayerTime(forward_s=4.71e-3, backward_s=2.30e-3)
"""Additional launch time of adapters with ZeRO-3: each adapter has three modules with hooks."""

_NUM_LINEARS = 7

_MLP_FRACTION = 0.13
"""Fraction of a layer's launch time in the MLP: an MLP alone took 0.07 of 0.55 ms, and has a third
of the hooks."""

_OPERATION_S = (_PLAIN.forward_s + _PLAIN.backward_s) / 227
"""Of the operations that torch dispatches in a Llama's layer, forward and backward: each."""

_CHECKPOINT_S = 0.49e-3
"""Launch time of a region under torch's checkpoint, beside its recomputation: the states of random
generators are saved and restored. Measured on one H100: a layer at micro-batch 8 took 7.9 ms with
a checkpoint and 4.4 ms without; the value also fits four MLP tiles a layer. It is scaled to the
reference core."""

_COLLECTIVE_LAUNCHES = 7
"""Launches of one collective from Python. Assumed."""

_EXCHANGE = _LayerTime(forward_s=0.54e-3, backward_s=0.45e-3)
"""Additional launch time of Ulysses' exchanges, in DeepSpeed's and torch's wrappers before NCCL.
Measured on the reference core with torch's process group that sends nothing."""

_EXCHANGES = (5, 4)
"""Number of Ulysses' collectives in forward, one of them for positions, and in backward."""

_ENQUEUE_LAUNCHES = 4.6
"""Launches of one collective in NCCL. Measured: 37 µs for an empty call on two H200."""

_GATHERED_ELEMENTS = 50_000_000
"""Elements of weights that ZeRO-3 gathers in one call (`stage3_prefetch_bucket_size`)."""

_TENSOR_LAUNCHES = 20
"""Launches of a ZeRO step for each weight tensor: copy, norm, clipping, copy back. A layer with
nine tensors took 0.46 ms on the reference core."""

_OFFLOAD_LAUNCHES = 25
"""Additional launches for each tensor whose gradient is copied to the host separately. Measured on
one H100: 0.12 s for 560 tensors of adapters."""


class LaunchOverheadModel:
    """Host time of any strategy, for one workload on one machine."""

    def __init__(self, workload: Workload, hardware: Hardware) -> None:
        self._workload = workload
        self._num_ranks = hardware.num_devices
        self._launch_s = effective_rates(hardware).launch_s
        self._slowdown = self._launch_s / REFERENCE_LAUNCH_S
        self._adapted: dict[str, int] = {}
        shape = workload.model
        self._num_linears = len(shape.attention_linears) + len(shape.mlp_linears)
        self._ratio = layer_kernels(shape, 1, is_fused=False).host_ratio

    def micro_step_s(self, strategy: Strategy, num_layers: int) -> float:
        """Seconds to launch one micro-step of these layers; 0 on a CPU, which is the host."""
        forward, backward = self._layer_s(strategy)
        again = _again(repeats(strategy))
        seconds = (1 + again) * forward + backward + _CHECKPOINT_S * _num_regions(strategy)
        launches = 0
        if strategy.tensor_parallel_size > 1:
            launches = _COLLECTIVE_LAUNCHES * tensor_sums(self._workload.model, strategy)
        return num_layers * (self._slowdown * seconds + launches * self._launch_s)

    def forward_fraction(self, strategy: Strategy) -> float:
        """The fraction of a micro-step's launch time that is before backward."""
        forward, backward = self._layer_s(strategy)
        again = _again(repeats(strategy))
        regions = _CHECKPOINT_S * _num_regions(strategy)
        return (forward + regions / 2) / ((1 + again) * forward + backward + regions)

    def step_s(self, strategy: Strategy, num_layers: int) -> float:
        """Seconds to launch an optimizer step; host and device wait for each other."""
        adapted = self._num_adapted(strategy) if strategy.lora_rank else 0
        num_tensors = 2 * adapted if strategy.lora_rank else self._num_linears + 2
        launches = _TENSOR_LAUNCHES
        facts = OPTIMIZERS[strategy.optimizer]
        is_flat = flattens_parameters(strategy)
        launches += facts.launches_under_zero if is_flat else facts.launches
        if strategy.offload_optimizer is not Offload.NONE:
            launches += _OFFLOAD_LAUNCHES
        return num_layers * num_tensors * launches * self._launch_s

    def _layer_s(self, strategy: Strategy) -> tuple[float, float]:
        """Seconds of forward and backward of one layer on the reference core."""
        is_zero3 = strategy.zero_stage == 3
        plain = _ZERO3 if is_zero3 else _PLAIN
        forward, backward = self._ratio * plain.forward_s, self._ratio * plain.backward_s
        if self._workload.model.expert_parameters:
            more, more_back = self._experts_s(strategy)
            forward, backward = forward + more, backward + more_back
        if strategy.lora_rank:
            adapters = _ZERO3_ADAPTERS if is_zero3 else _ADAPTERS
            part = self._num_adapted(strategy) / _NUM_LINEARS
            forward += part * adapters.forward_s
            backward += part * adapters.backward_s
        if self._workload.method is Method.QLORA:
            part = self._num_linears / _NUM_LINEARS
            forward += part * _4BIT.forward_s
            backward += part * _4BIT.backward_s
        # An MLP in tiles is launched tile by tile.
        pieces = 1 + _MLP_FRACTION * (strategy.mlp_tiles - 1)
        talk, talk_back = self._collectives_s(strategy)
        return forward * pieces + talk, backward * pieces + talk_back

    def _experts_s(self, strategy: Strategy) -> tuple[float, float]:
        """Launch time of routed experts beyond an MLP's: of the loop one expert after the other.

        Where the loop reads which experts have tokens, the host waits for the device besides.
        """
        experts = RoutedExperts(self._workload, strategy)
        forward, backward = experts.more_operations
        return _OPERATION_S * forward, _OPERATION_S * backward

    def _collectives_s(self, strategy: Strategy) -> tuple[float, float]:
        """Launch time of Ulysses' exchanges, and of ZeRO-3's gathering on several ranks."""
        enqueue = _ENQUEUE_LAUNCHES * REFERENCE_LAUNCH_S
        forward = backward = 0.0
        if strategy.sequence_parallel_size > 1:
            forward += _EXCHANGE.forward_s + _EXCHANGES[0] * enqueue
            backward += _EXCHANGE.backward_s + _EXCHANGES[1] * enqueue
        if strategy.zero_stage == 3 and zero_size(strategy, self._num_ranks) > 1:
            gathers = -(-self._workload.model.parameters_per_layer // _GATHERED_ELEMENTS)
            forward += gathers * enqueue
            backward += gathers * enqueue
        return forward, backward

    def _num_adapted(self, strategy: Strategy) -> int:
        """Number of linear layers with adapters in one decoder layer."""
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


def _again(times: Repeats) -> float:
    """Fraction of forward that backward launches again."""
    return (times.attention + times.mlp) / 2


def _num_regions(strategy: Strategy) -> int:
    """Number of calls of torch's checkpoint in one layer."""
    tiles = strategy.mlp_tiles if strategy.mlp_tiles > 1 else 0
    return tiles + (strategy.checkpoint_interval > 0)
