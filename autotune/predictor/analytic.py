"""A prediction from first principles: no trial is needed for it, and it learns from none.

Does not know which strategies are tried, nor how far off it was.
"""

from __future__ import annotations

from autotune.hardware import DeviceType, Hardware
from autotune.knobs import MasterWeights, Offload
from autotune.predictor.memory import MemoryModel
from autotune.predictor.time import TimeModel
from autotune.strategy import Strategy
from autotune.trial import Prediction
from autotune.workload import Workload

__all__ = ["AnalyticPredictor"]

_DEVICE_OVERHEAD_BYTES = {DeviceType.CUDA: 1_400_000_000, DeviceType.CPU: 350_000_000}
"""CUDA: 1.30 GiB, what NVML showed beyond torch's reserved memory in 24 runs on an H100 (context,
kernels, cuBLAS workspace, NCCL). CPU: the resident set of a rank just forked."""

_HOST_BYTES_PER_PARAMETER = {MasterWeights.FP32: 12, MasterWeights.BF16: 6}
"""DeepSpeed's CPU Adam keeps master weights and two moments on the host, in fp32 or all in bf16.
Gradients pass through it as well; they are not counted, so this is the least."""


class AnalyticPredictor:
    """Memory from what DeepSpeed and the layers allocate, time from a roofline.

    Args:
        workload: what is trained.
        hardware: what it runs on.
    """

    def __init__(self, workload: Workload, hardware: Hardware) -> None:
        self._workload = workload
        self._is_cpu = hardware.device_type is DeviceType.CPU
        self._memory = MemoryModel(workload, hardware)
        self._time = TimeModel(workload, hardware)
        self._device_overhead_bytes = _DEVICE_OVERHEAD_BYTES[hardware.device_type]

    def predict(self, strategy: Strategy) -> Prediction:
        """Peak memory and step time of one strategy, with their doubt."""
        peak = self._memory.peak(strategy)
        step_time_s = self._time.step_time_s(strategy)
        return Prediction(
            peak_memory_bytes=peak.expected_bytes,
            peak_memory_lower_bytes=peak.lower_bytes,
            peak_memory_upper_bytes=peak.upper_bytes,
            device_overhead_bytes=self._device_overhead_bytes,
            host_memory_bytes=self._host_memory_bytes(strategy),
            step_time_s=step_time_s,
            tokens_per_second=self._workload.tokens_per_step / step_time_s,
            moment=peak.moment,
            breakdown_bytes=peak.breakdown_bytes,
        )

    def _host_memory_bytes(self, strategy: Strategy) -> int:
        if self._is_cpu or strategy.offload_optimizer is Offload.NONE:
            return 0
        trained = self._workload.num_trainable_parameters(strategy.lora_rank)
        return _HOST_BYTES_PER_PARAMETER[strategy.master_weights] * trained
