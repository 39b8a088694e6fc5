"""A causal model of transformers as a pipeline of DeepSpeed's.

Each stage is the whole model with stand-ins for the layers of others (`stage.py`), so all that
travels between stages is hidden states and labels. Every stage is one layer of the
`PipelineModule`, which gives the loss itself.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from autotune.errors import ConfigError
from autotune.space.strategy_file import read_strategy_file
from autotune.techniques.apply import apply_strategy
from autotune.techniques.blocks import causal_model, decoder_layers
from autotune.techniques.parallel_layout import parallel_coordinates
from autotune.techniques.stage import StandIn, cut_stage

__all__ = ["pipeline", "pipeline_module", "sum_over_stages"]


def pipeline(model: nn.Module, strategy_file: str | Path) -> nn.Module:
    """Put an exported strategy on a model and divide it into the stages of a pipeline.

    Call it instead of `autotune.apply`, after `deepspeed.init_distributed`, and hand what it gives
    to `deepspeed.initialize`. The engine then trains by `train_batch`, from an iterator over
    micro-batches `((input_ids, labels), ())`, each [samples, tokens]; ranks of one pipeline must
    give the same. What other ranks hold is taken out of the model.

    Args:
        model: a causal language model of transformers, on any device; changed in place.
        strategy_file: the `strategy.yaml` of an export.

    Returns:
        A `deepspeed.pipe.PipelineModule` with this rank's stage, on its device.

    Raises:
        ConfigError: the file is wrong, or the model cannot take the strategy.
    """
    exported = read_strategy_file(Path(strategy_file))
    strategy = exported.strategy
    if strategy.pipeline_parallel_size == 1:
        raise ConfigError("pipeline_parallel_size is 1: use autotune.apply")
    if not dist.is_initialized():
        raise ConfigError(
            "pipeline_parallel_size needs its ranks: call deepspeed.init_distributed() before "
            "autotune.pipeline"
        )
    num_ranks = dist.get_world_size()
    if not strategy.data_parallel_size(num_ranks):
        raise ConfigError(
            f"pipeline_parallel_size {strategy.pipeline_parallel_size} does not divide the "
            f"{num_ranks} ranks"
        )
    coordinates = parallel_coordinates(strategy, rank=dist.get_rank(), num_ranks=num_ranks)
    layers = decoder_layers(model, int(model.config.num_hidden_layers))  # type: ignore[union-attr, arg-type]
    num_stages = strategy.pipeline_parallel_size
    cut_stage(model, layers, stage=coordinates.pipeline, num_stages=num_stages)
    model = apply_strategy(
        model, strategy, method=exported.method, lora_targets=exported.lora_targets
    )
    return pipeline_module(model, num_stages=num_stages, stage=coordinates.pipeline)


def pipeline_module(model: nn.Module, *, num_stages: int, stage: int) -> nn.Module:
    """DeepSpeed's pipeline, with a model that was cut to this rank's stage.

    Args:
        model: after `cut_stage` and `apply_strategy`.
        num_stages: stages of the pipeline.
        stage: the one that the model was cut to.
    """
    from deepspeed.pipe import LayerSpec, PipelineModule, TiedLayerSpec

    is_last = stage == num_stages - 1
    specs: list[Any] = [LayerSpec(_Stage, model, is_last=is_last) for _ in range(num_stages)]
    causal = causal_model(model)
    config: Any = causal.config
    if config.tie_word_embeddings and causal is model:
        # Named to DeepSpeed, so that it adds up the gradients of the two copies and counts them
        # once in the norm. The stages themselves use it by the model's own names.
        tied = TiedLayerSpec("embedding", _TiedEmbedding, model, forward_fn=_hand_on)
        specs = [tied, *specs, tied]
    module: nn.Module = PipelineModule(
        specs,
        num_stages=num_stages,
        # One of them on each rank.
        partition_method=f"type:{_Stage.__name__}",
    )
    if config.tie_word_embeddings and is_last:
        # Known already, but for a model with adapters, whose embedding is not trained.
        _embedding_weight(causal).ds_pipe_replicated = True  # type: ignore[attr-defined]
    for parameter in module.parameters():
        # Without ZeRO, DeepSpeed's norm of the gradients leaves out what is not marked so on
        # stages after the first.
        parameter.model_parallel = not parameter.ds_pipe_replicated  # type: ignore[attr-defined]
    return module


def sum_over_stages(model: nn.Module, number: int) -> int:
    """A number that each stage has of its own, over the whole pipeline; without one as it is."""
    from deepspeed.pipe import PipelineModule

    if not isinstance(model, PipelineModule):
        return number
    total = torch.tensor(number, device=next(model.parameters()).device)
    dist.all_reduce(total, group=model.mpu().get_pipe_parallel_group())
    return int(total)


class _Stage(nn.Module):
    """What one rank computes of a micro-batch.

    From token ids, [samples, tokens], or hidden states, [samples, tokens, width], to hidden
    states, and on the last stage to the loss. Labels travel along, to be at hand where the model's
    own forward computes its loss: DeepSpeed's hooks expect all of a stage within its forward.
    """

    def __init__(self, model: nn.Module, *, is_last: bool) -> None:
        super().__init__()
        self.model = model
        self._is_last = is_last

    def forward(self, given: tuple[torch.Tensor, torch.Tensor]) -> Any:
        """Hidden states and labels, or the loss."""
        tensor, labels = given
        with _received(self.model, tensor) as inputs:
            if self._is_last:
                return self.model(**inputs, labels=labels, use_cache=False).loss
            causal = causal_model(self.model)
            base: Any = getattr(causal, str(causal.base_model_prefix))
            return base(**inputs, use_cache=False).last_hidden_state, labels


@contextlib.contextmanager
def _received(model: nn.Module, given: torch.Tensor) -> Iterator[dict[str, torch.Tensor]]:
    """The arguments with which the model's forward runs on what a stage was given.

    Hidden states go to the stage's first layer. The model sees them as embeddings too, to make
    masks and positions of that shape; what it adds to embeddings or scales them by goes nowhere.
    """
    entry = next((m for m in model.modules() if isinstance(m, StandIn) and m.receives), None)
    if entry is None:
        yield {"input_ids": given}
        return
    entry.hidden = given
    try:
        yield {"inputs_embeds": given.detach()}
    finally:
        entry.hidden = None


class _TiedEmbedding(nn.Module):
    """The embedding that is also the head, under a name that DeepSpeed knows."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.weight = _embedding_weight(model)


def _hand_on(tied: nn.Module, given: Any) -> Any:
    return given


def _embedding_weight(causal: nn.Module) -> nn.Parameter:
    weight: nn.Parameter = causal.get_input_embeddings().weight  # type: ignore[operator]
    return weight
