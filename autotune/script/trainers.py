"""Steers the trainers that hand DeepSpeed its configuration: transformers', TRL's, Accelerate.

Their arguments for batches, checkpointing, precision and configuration follow the strategy, and a
trial writes, uploads and evaluates nothing. Does not know DeepSpeed's own entry points.
"""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

from autotune.knob_values import Batching, Precision
from autotune.script.configuration import with_strategy
from autotune.script.joined_batches import JoiningCollator
from autotune.script.steering import Steering
from autotune.space.strategy import Strategy

__all__ = ["SILENT", "steer_trainers"]

SILENT: Mapping[str, str] = {
    "WANDB_MODE": "disabled",
    "WANDB_DISABLED": "true",
    "COMET_MODE": "DISABLED",
    "DISABLE_MLFLOW_INTEGRATION": "TRUE",
    "CLEARML_LOG_MODEL": "FALSE",
    "TRACKIO_DISABLED": "1",
    "NEPTUNE_MODE": "debug",
    "SWANLAB_MODE": "disabled",
}
"""Environment of a trial: loggers that upload are off."""

_QUIET_ARGUMENTS: Mapping[str, Any] = {
    "save_strategy": "no",
    "eval_strategy": "no",
    "eval_on_start": False,
    "load_best_model_at_end": False,
    "push_to_hub": False,
    "report_to": "none",
    "logging_strategy": "no",
    "disable_tqdm": True,
    "resume_from_checkpoint": None,
    "auto_find_batch_size": False,
}
"""Arguments of `TrainingArguments` that a trial has another way."""


def steer_trainers(steering: Steering) -> None:
    """Change what trainers are told, before the user's program imports them.

    Args:
        steering: what to put in.
    """
    if steering.is_trial:
        os.environ.update(SILENT)
    if os.environ.get("DS_ACCELERATOR") == "cpu":
        _count_cpu_ranks()
    _steer_training_arguments(steering)
    _steer_configuration(steering)
    _steer_accelerate(steering)


def _count_cpu_ranks() -> None:
    """Have Accelerate know CPU ranks under DeepSpeed, which it takes for one process each.

    All would train on the same samples otherwise (Accelerate 1.15, `PartialState`).
    """
    from accelerate import PartialState
    from accelerate.utils import DistributedType

    original = PartialState._prepare_backend

    @functools.wraps(original)
    def prepare_backend(self: Any, *args: Any, **kwargs: Any) -> Any:
        backend, kind = original(self, *args, **kwargs)
        return ("gloo", DistributedType.MULTI_CPU) if backend is None else (backend, kind)

    PartialState._prepare_backend = prepare_backend


def _steer_training_arguments(steering: Steering) -> None:
    from transformers import Trainer, TrainingArguments

    original = TrainingArguments.__post_init__

    @functools.wraps(original)
    def post_init(self: Any) -> None:
        _change_arguments(self, steering)
        original(self)  # type: ignore[no-untyped-call]

    setattr(TrainingArguments, "__post_init__", post_init)  # noqa: B010
    _steer_batches(steering)
    if steering.is_trial:
        _leave_out(Trainer)


class _NoMetrics(dict[str, Any]):
    """Metrics of an evaluation that was left out: whichever is asked for is no number."""

    def __missing__(self, key: str) -> float:
        return math.nan


def _leave_out(trainer: Any) -> None:
    """Of a Trainer all that is no training: evaluation, files, and a start from a checkpoint."""
    from transformers import EarlyStoppingCallback
    from transformers.trainer_utils import PredictionOutput

    def evaluate(self: Any, *args: Any, **kwargs: Any) -> _NoMetrics:
        return _NoMetrics({f"{kwargs.get('metric_key_prefix', 'eval')}_loss": math.nan})

    def predict(self: Any, *args: Any, **kwargs: Any) -> PredictionOutput:
        nothing: Any = None
        return PredictionOutput(nothing, nothing, _NoMetrics())

    original = trainer.train

    @functools.wraps(original)
    def train(self: Any, resume_from_checkpoint: Any = None, *args: Any, **kwargs: Any) -> Any:
        return original(self, None, *args, **kwargs)

    trainer.evaluate, trainer.predict, trainer.train = evaluate, predict, train
    trainer.save_model = trainer.push_to_hub = _nothing
    # It refuses to train without evaluation; a callback that returns nothing changes nothing.
    setattr(EarlyStoppingCallback, "on_train_begin", lambda *args, **kwargs: None)  # noqa: B010


def _steer_batches(steering: Steering) -> None:
    """Have the loader of training batches, and of no others, join samples if it shall."""
    from transformers import Trainer

    original = Trainer.get_train_dataloader
    strategy = steering.strategy
    joins = strategy is not None and strategy.batching is Batching.PADDING_FREE

    @functools.wraps(original)
    def get_train_dataloader(self: Any) -> Any:
        steering.by_trainer.add("batching")
        own = self.data_collator
        self.data_collator = JoiningCollator(own) if joins else own
        try:
            return original(self)
        finally:
            self.data_collator = own

    setattr(Trainer, "get_train_dataloader", get_train_dataloader)  # noqa: B010


def _nothing(self: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
    """Stands for what a trial leaves out."""
    return {}


def _change_arguments(arguments: Any, steering: Steering) -> None:
    """The fields of a `TrainingArguments`, before it checks them."""
    changes: dict[str, Any] = {}
    if steering.is_trial:
        changes |= dict(_QUIET_ARGUMENTS) | {"output_dir": steering.output_folder}
    if arguments.deepspeed is None and not _launched_with_deepspeed():
        # A plain Trainer: it runs under DeepSpeed all the same, else nothing could be steered.
        changes["deepspeed"] = {
            "zero_optimization": {"stage": 0},
            "train_micro_batch_size_per_gpu": "auto",
            "gradient_accumulation_steps": "auto",
            "gradient_clipping": "auto",
            "bf16": {"enabled": "auto"},
            "fp16": {"enabled": "auto"},
        }
        stage = steering.strategy.zero_stage if steering.strategy is not None else 0
        steering.on_change(f"the command uses no DeepSpeed: it runs under ZeRO stage {stage}")
    strategy = steering.strategy
    if strategy is not None:
        changes |= {
            "per_device_train_batch_size": strategy.micro_batch_size,
            "gradient_accumulation_steps": steering.accumulation,
            # The strategy says what is recomputed, and with which kernels.
            "gradient_checkpointing": False,
            "activation_checkpointing": False,
            # TRL reads more of a model's output than Liger's own patch gives.
            "use_liger_kernel": strategy.fused_kernels,
            "torch_compile": False,
            "bf16": strategy.precision is Precision.BF16,
            "fp16": strategy.precision is Precision.FP16,
        }
        steering.by_trainer.add("fused_kernels")
    for name, value in changes.items():
        if hasattr(arguments, name):
            setattr(arguments, name, value)


def _launched_with_deepspeed() -> bool:
    return os.environ.get("ACCELERATE_USE_DEEPSPEED", "false").lower() == "true"


def _steer_configuration(steering: Steering) -> None:
    """Accelerate's holder of a configuration, which the Trainer's is a kind of."""
    if steering.strategy is None:
        return
    from accelerate.utils.deepspeed import HfDeepSpeedConfig

    original = HfDeepSpeedConfig.__init__

    @functools.wraps(original)
    def init(self: Any, config_file_or_dict: Any) -> None:
        original(self, config_file_or_dict)
        self.config = with_strategy(self.config, steering.config, keeps_optimizer=True)
        self.set_stage_and_offload()

    HfDeepSpeedConfig.__init__ = init
    _steer_plugin(steering.strategy)


def _steer_plugin(strategy: Strategy) -> None:
    """Accelerate decides by its plugin's own copy of the stage whether gradients are reduced."""
    from accelerate.utils import DeepSpeedPlugin

    original = DeepSpeedPlugin.__post_init__

    @functools.wraps(original)
    def post_init(self: Any) -> None:
        original(self)
        self.zero_stage = strategy.zero_stage

    DeepSpeedPlugin.__post_init__ = post_init


def _steer_accelerate(steering: Steering) -> None:
    from accelerate import Accelerator

    if steering.is_trial:
        for name in ("save_state", "save_model", "init_trackers", "log"):
            setattr(Accelerator, name, _nothing)
    if steering.micro_batch_size is None:
        return
    outer = Accelerator.prepare

    @functools.wraps(outer)
    def prepare_all(self: Any, *args: Any, **kwargs: Any) -> Any:
        return outer(self, *_in_batches_of(args, steering.micro_batch_size), **kwargs)

    Accelerator.prepare = prepare_all


def _in_batches_of(prepared: Sequence[Any], size: int | None) -> list[Any]:
    """What is prepared, with the training loader in batches of another size.

    It is the first loader beside a model, or one that shuffles; others are for evaluation. A
    loader that makes its batches in a way of its own stays as it is.
    """
    from torch.nn import Module
    from torch.utils.data import BatchSampler, DataLoader, RandomSampler

    has_model = any(isinstance(each, Module) for each in prepared)
    changed: list[Any] = []
    for each in prepared:
        is_plain = type(each) is DataLoader and type(each.batch_sampler) is BatchSampler
        trains = is_plain and (has_model or isinstance(each.sampler, RandomSampler))
        changed.append(_with_batches_of(each, size) if trains and size is not None else each)
        has_model = has_model and not is_plain
    return changed


def _with_batches_of(prepared: Any, size: int) -> Any:
    """A loader of the same samples in the same order, in batches of another size."""
    from torch.utils.data import DataLoader, IterableDataset

    if prepared.batch_size == size:
        return prepared
    is_stream = isinstance(prepared.dataset, IterableDataset)
    order = {} if is_stream else {"sampler": prepared.sampler}
    prefetches = {"prefetch_factor": prepared.prefetch_factor} if prepared.num_workers else {}
    return DataLoader(
        prepared.dataset,
        batch_size=size,
        num_workers=prepared.num_workers,
        collate_fn=prepared.collate_fn,
        pin_memory=prepared.pin_memory,
        drop_last=prepared.drop_last,
        timeout=prepared.timeout,
        worker_init_fn=prepared.worker_init_fn,
        multiprocessing_context=prepared.multiprocessing_context,
        generator=prepared.generator,
        persistent_workers=prepared.persistent_workers,
        **order,
        **prefetches,
    )
