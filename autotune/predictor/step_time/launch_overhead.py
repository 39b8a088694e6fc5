"""The least time that the host takes to launch a step's work on a GPU.

Python, launches and DeepSpeed's hooks. Does not know how long the device works.

The times of its parts were measured on one core of a CPU with tensors of no size, where there is
nothing but the host's work: Llamas of 2 and of 10 layers under DeepSpeed 0.19.8 with PEFT 0.21 and
bitsandbytes 0.50. On another host they last as much longer as its launch of a small kernel does.
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
    """Seconds of a decoder layer of seven linear layers on the reference core."""

    forward_s: float
    backward_s: float


_PLAIN = _LayerTime(forward_s=0.52e-3, backward_s=0.87e-3)
_ADAPTERS = _LayerTime(forward_s=0.47e-3, backward_s=0.37e-3)
"""Additional launch time where all seven linear layers have adapters."""

_4BIT = _LayerTime(forward_s=1.36e-3, backward_s=0.83e-3)
"""Additional launch time where all seven linear layers are in 4 bit."""

_ZERO3 = _LayerTime(forward_s=2.70e-3, backward_s=2.38e-3)
"""Launch time with ZeRO-3, instead of `_PLAIN`: hooks of every module gather and release its
weights. Processor time of the thread; two ranks take no longer than one, with a process group that
sends nothing."""

_ZERO3_ADAPTERS = _LayerTime(forward_s=4.71e-3, backward_s=2.30e-3)
"""Additional launch time of adapters with ZeRO-3: each has three modules with hooks of their
own."""

_NUM_LINEARS = 7

_MLP_FRACTION = 0.13
"""Fraction of a layer's launches in the MLP: an MLP alone took 0.07 of 0.55 ms, and has a third of
the hooks."""

_OPERATION_S = (_PLAIN.forward_s + _PLAIN.backward_s) / 227
"""Of the operations that torch dispatches in a Llama's layer, forward and backward: each."""

_CHECKPOINT_S = 0.49e-3
"""Time of a region under torch's checkpoint, beside what it runs again: states of random
generators kept and restored. Measured on one H100: a layer at micro-batch 8 took 7.9 ms with, 4.4
without, and fits four MLP tiles a layer as well; scaled to the reference core."""

_COLLECTIVE_LAUNCHES = 7
"""Launches of one collective from Python. Assumed."""

_EXCHANGE = _LayerTime(forward_s=0.54e-3, backward_s=0.45e-3)
"""Additional launch time where Ulysses exchanges heads for tokens: DeepSpeed's wrapper and torch's
up to NCCL. Measured on the reference core with torch's process group that sends nothing."""

_EXCHANGES = (5, 4)
"""Collectives of Ulysses in forward, one of which is of positions, and in backward."""

_ENQUEUE_LAUNCHES = 4.6
"""Launches of one collective in NCCL. Measured: 37 µs a call of no size on two H200."""

_GATHERED_ELEMENTS = 50_000_000
"""Elements of weights that ZeRO-3 gathers in one call (`stage3_prefetch_bucket_size`)."""

_TENSOR_LAUNCHES = 20
"""Launches of a ZeRO step for each weight tensor: copied, its norm taken, clipped, copied back. A
layer of nine took 0.46 ms of the reference core."""

_OFFLOAD_LAUNCHES = 25
"""Additional launches for each tensor whose gradient goes to the host by itself. Measured on one
H100: 0.12 s of 560 adapters' tensors."""


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
        """Seconds to launch one micro-step of so many layers; 0 on the CPU, which is the host."""
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
        """Seconds to launch an optimizer step; the device waits for it, and it for the device."""
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
        """Forward and backward of one layer on the reference core."""
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
        forward, backward = experts.more_kernels
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


def _again(times: Repeats) -> float:
    """Part of forward that backward launches again."""
    return (times.attention + times.mlp) / 2


def _num_regions(strategy: Strategy) -> int:
    """Calls of torch's checkpoint in one layer."""
    tiles = strategy.mlp_tiles if strategy.mlp_tiles > 1 else 0
    return tiles + (strategy.checkpoint_interval > 0)
