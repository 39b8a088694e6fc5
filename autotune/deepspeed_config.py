"""A strategy as DeepSpeed's JSON: the only file that knows DeepSpeed's keys.

The worker trains with exactly what the export writes, so what was measured is what is shipped.
What a JSON cannot hold (checkpointing, kernels, LoRA, bitsandbytes' optimizers) is put on the
model by `worker/apply.py`.
"""

from __future__ import annotations

from typing import Any

from autotune.errors import ConfigError
from autotune.hardware import DeviceType
from autotune.knobs import MasterWeights, Offload, Optimizer, Precision
from autotune.strategy import Strategy
from autotune.workload import Workload

__all__ = ["DEFAULT_BUCKET_ELEMENTS", "LEARNING_RATE", "deepspeed_config", "is_client_optimizer"]

LEARNING_RATE = 1e-5
"""The learning rate written into configurations; a user's own belongs in its place."""

DEFAULT_BUCKET_ELEMENTS = 500_000_000
"""DeepSpeed's default for reduce_bucket_size and allgather_bucket_size."""


def is_client_optimizer(strategy: Strategy) -> bool:
    """Whether the optimizer is built outside DeepSpeed and passed to `deepspeed.initialize`."""
    return strategy.optimizer in (Optimizer.ADAMW_8BIT, Optimizer.LION, Optimizer.LION_8BIT)


def deepspeed_config(
    workload: Workload, strategy: Strategy, *, num_devices: int, device_type: DeviceType
) -> dict[str, Any]:
    """The configuration that `deepspeed.initialize` takes for this strategy.

    Raises:
        ConfigError: the global batch cannot be divided as the strategy asks.
    """
    accumulation = strategy.gradient_accumulation_steps(workload.global_batch_size, num_devices)
    if not accumulation:
        raise ConfigError(
            f"micro_batch_size {strategy.micro_batch_size} x {num_devices} ranks does not divide "
            f"--global-batch {workload.global_batch_size}"
        )
    config: dict[str, Any] = {
        "train_batch_size": workload.global_batch_size,
        "train_micro_batch_size_per_gpu": strategy.micro_batch_size,
        "gradient_accumulation_steps": accumulation,
        "gradient_clipping": 1.0,
        # DeepSpeed's own progress lines would synchronise the device.
        "steps_per_print": 2**31 - 1,
        **_precision(strategy),
    }
    if strategy.zero_stage:
        config["zero_optimization"] = _zero_optimization(workload, strategy, num_devices)
        if strategy.optimizer is not Optimizer.ADAMW:
            config["zero_allow_untested_optimizer"] = True
    optimizer = _optimizer(strategy, device_type)
    if optimizer:
        config["optimizer"] = optimizer
    return config


def _precision(strategy: Strategy) -> dict[str, Any]:
    if strategy.precision is Precision.FP32:
        return {}
    if strategy.precision is Precision.FP16:
        # Loss scale 0 stands for dynamic. 2**16, DeepSpeed's start, overflows for several steps.
        return {"fp16": {"enabled": True, "loss_scale": 0, "initial_scale_power": 12}}
    bf16: dict[str, Any] = {"enabled": True}
    if strategy.master_weights is MasterWeights.BF16:
        bf16 |= {"bf16_master_weights_and_grads": True, "bf16_optimizer_states": True}
    return {"bf16": bf16}


def _zero_optimization(workload: Workload, strategy: Strategy, num_devices: int) -> dict[str, Any]:
    # A bucket larger than the model only costs memory: nothing more ever travels in it.
    trained = workload.num_trainable_parameters(strategy.lora_rank)
    bucket = min(strategy.reduce_bucket_size, max(trained, 1))
    zero: dict[str, Any] = {
        "stage": strategy.zero_stage,
        "overlap_comm": strategy.overlap_comm and num_devices > 1,
        "contiguous_gradients": True,
        "reduce_bucket_size": bucket,
    }
    if strategy.zero_stage < 3:
        zero["allgather_bucket_size"] = bucket
    if strategy.offload_optimizer is Offload.CPU:
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": True}
    return zero


def _optimizer(strategy: Strategy, device_type: DeviceType) -> dict[str, Any] | None:
    if is_client_optimizer(strategy):
        return None
    # No types of DeepSpeed's: looked up in torch.optim by these very names.
    if strategy.optimizer is Optimizer.ADAFACTOR:
        return {"type": "Adafactor", "params": {"lr": LEARNING_RATE, "weight_decay": 0.0}}
    if strategy.optimizer is Optimizer.SGD:
        return {"type": "SGD", "params": {"lr": LEARNING_RATE, "momentum": 0.9}}
    params: dict[str, Any] = {
        "lr": LEARNING_RATE,
        "betas": [0.9, 0.999],
        "eps": 1e-8,
        "weight_decay": 0.0,
    }
    if strategy.offload_optimizer is Offload.NONE:
        # torch's own AdamW needs no extension to be compiled; fused is its single-kernel form.
        params |= {"torch_adam": True, "fused": device_type is DeviceType.CUDA}
    return {"type": "AdamW", "params": params}
