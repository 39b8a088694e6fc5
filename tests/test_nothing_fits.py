"""Questions that this machine cannot answer: said before anything runs, in numbers."""

from __future__ import annotations

from dataclasses import replace

from autotune.machine.hardware import DeviceType, Hardware
from autotune.predictor import AnalyticPredictor
from autotune.question.limits import Limits
from autotune.question.workload import Workload, load_model_shape
from autotune.space.strategy import Strategy
from autotune.trials.trial import Prediction

GIB = 2**30

H100 = Hardware(
    device_type=DeviceType.CUDA,
    device_kind="H100-80GB",
    num_devices=1,
    device_memory_bytes=80 * GIB,
    host_memory_bytes=126 * GIB,
    flops_per_s=989e12,
    memory_bytes_per_s=3.35e12,
)
WORKLOAD = Workload(model=load_model_shape("13B"), seq_len=1024, global_batch_size=16)
LIMITS = Limits(device_bytes=76 * GIB, host_bytes=126 * GIB)


def _predict(**knobs: object) -> Prediction:
    strategy = Strategy.from_dict({"zero_stage": 2, "checkpoint_interval": 1} | knobs)
    return AnalyticPredictor(WORKLOAD, H100).predict(strategy)


def test_13b_with_adam_fits_neither_one_h100_nor_its_host() -> None:
    on_device, on_host = _predict(), _predict(offload_optimizer="cpu")
    assert not on_device.might_fit(LIMITS)
    assert not on_host.might_fit(LIMITS)
    # Of 13.0 billion parameters: moments 97 GiB; master weights and their gradients, 48.5 each
    # and pinned as 64; weights on their way back 32; gradients between micro-steps 41.
    assert round(on_host.host_memory_lower_bytes / GIB) == 298
    assert on_host.missing_bytes(LIMITS) == on_host.peak_host_bytes - 126 * GIB


def test_13b_with_all_adam_states_in_bf16_just_misses_the_host() -> None:
    for zero_stage, gib in ((2, 145), (3, 131)):
        halved = _predict(zero_stage=zero_stage, offload_optimizer="cpu", master_weights="bf16")
        assert round(halved.host_memory_lower_bytes / GIB) == gib
        assert not halved.might_fit(LIMITS)


def test_nothing_is_kept_on_the_host_without_offload() -> None:
    assert _predict(zero_stage=3).host_memory_bytes == 0


def test_what_is_on_disk_needs_a_disk_and_little_of_the_host() -> None:
    on_disk = _predict(zero_stage=3, offload_optimizer="nvme", offload_param="nvme")
    # Master weights, two moments and gradients in fp32, and the weights in bf16.
    assert on_disk.disk_bytes == 18 * WORKLOAD.model.num_parameters
    assert on_disk.host_memory_bytes < 4 * GIB
    assert not on_disk.might_fit(LIMITS)
    assert on_disk.might_fit(replace(LIMITS, disk_bytes=on_disk.disk_bytes))
    assert on_disk.missing_bytes(LIMITS) >= on_disk.disk_bytes


def test_a_share_of_the_states_on_the_host_needs_that_share() -> None:
    """Flat gradients of 32 GiB stay whole; those of the step are pinned in other pieces."""
    whole = _predict(zero_stage=3, offload_optimizer="cpu").host_memory_bytes
    half = _predict(zero_stage=3, offload_optimizer="cpu", offload_ratio=0.5).host_memory_bytes
    assert 0.5 * (whole + 32 * GIB) < half < 0.65 * whole
