"""The part of a model that one rank holds, before ZeRO divides it further.

Tensor parallelism follows DeepSpeed's AutoTP with the plans of transformers
(`module_inject/auto_tp.py`, `base_model_tp_plan`): it divides linear layers of attention, MLP and
head, no norms, and an embedding only if the head shares its weights. `question/stages.py` divides
a pipeline. Sequence parallelism (Ulysses) divides no weights. Does not know bytes.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from autotune.predictor.memory.precision import FP32_BYTES, GroupBytes
from autotune.question.stages import divide_layers
from autotune.question.workload import ModelShape
from autotune.space.strategy import Strategy

__all__ = [
    "Parameters",
    "RankShard",
    "ShardModel",
    "fraction_of_16_bit",
    "tokens_of_rank",
    "weight_bytes",
    "zero_size",
]


@dataclass(frozen=True, kw_only=True, slots=True)
class Parameters:
    """Numbers of parameters, by group of modules."""

    attention: int
    mlp: int
    """Parameters of the MLPs, with all experts."""
    other: int
    """Norms, biases, routers."""
    embedding: int
    lm_head: int
    """Parameters of the output projection; 0 if it shares the embedding's weights."""
    head: int
    """Parameters of the output projection, its own or shared; 0 if another stage has it."""
    largest: int
    """Parameters of the largest single weight."""
    total: int = field(init=False)

    def __post_init__(self) -> None:
        """Compute the total once."""
        total = self.attention + self.mlp + self.other + self.embedding + self.lm_head
        object.__setattr__(self, "total", total)

    @property
    def linears(self) -> int:
        """Parameters of the linear layers of decoder layers."""
        return self.attention + self.mlp


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class RankShard:
    """The part of a model that a rank holds: a stage of a pipeline, or the whole model."""

    num_layers: int
    has_head: bool
    tensor_parallel_size: int
    num_in_flight: int
    """Number of micro-batches whose activations are held at once."""
    is_whole: bool
    """Whether there is only one stage."""
    parameters: Parameters


def zero_size(strategy: Strategy, num_ranks: int) -> int:
    """Number of ranks over which ZeRO divides: data-parallel times sequence-parallel ranks.

    `engine.py`, `seq_data_parallel_group`, if `deepspeed.initialize` is given sequence groups.
    """
    return max(1, num_ranks // (strategy.tensor_parallel_size * strategy.pipeline_parallel_size))


def tokens_of_rank(strategy: Strategy, seq_len: int) -> int:
    """Tokens of one micro-batch on one rank: Ulysses divides the tokens of each sample."""
    return strategy.micro_batch_size * seq_len // strategy.sequence_parallel_size


class ShardModel:
    """The shards of any strategy's ranks, for one model."""

    def __init__(self, shape: ModelShape) -> None:
        self._shape = shape
        self._shards: dict[tuple[int, int, int], tuple[RankShard, ...]] = {}

    def of(self, strategy: Strategy, accumulation: int) -> tuple[RankShard, ...]:
        """One shard for each stage: which one is the worst depends on the quantity.

        With 1F1B the i-th of p stages has up to p - i micro-batches in flight, but no more than
        one optimizer step has (`runtime/pipe/schedule.py`, `TrainSchedule.num_pipe_buffers`;
        Narayanan et al., arXiv 2104.04473, section 2.2).
        """
        tensor, num_stages = strategy.tensor_parallel_size, strategy.pipeline_parallel_size
        key = (tensor, num_stages, min(num_stages, accumulation))
        shards = self._shards.get(key)
        if shards is None:
            shards = self._shards[key] = self._divide(*key)
        return shards

    def _divide(self, tensor: int, num_stages: int, num_in_flight: int) -> tuple[RankShard, ...]:
        sizes = self._stage_sizes(min(num_stages, self._shape.num_hidden_layers))
        last = len(sizes) - 1
        return tuple(
            RankShard(
                num_layers=size,
                has_head=stage == last,
                tensor_parallel_size=tensor,
                num_in_flight=min(len(sizes) - stage, num_in_flight),
                is_whole=last == 0,
                parameters=self._parameters(
                    size, has_embedding=stage == 0, has_head=stage == last, tensor=tensor
                ),
            )
            for stage, size in enumerate(sizes)
        )

    def _stage_sizes(self, num_stages: int) -> list[int]:
        """Decoder layers of each stage, as `techniques/stage.py` cuts a model."""
        shape = self._shape
        layer = shape.parameters_per_layer
        stages = divide_layers(
            shape.num_hidden_layers,
            num_stages,
            before=shape.embedding_parameters / layer,
            after=(shape.norm_parameters + self._output) / layer,
        )
        return [len(stage) for stage in stages]

    @property
    def _output(self) -> int:
        return self._shape.vocab_size * self._shape.hidden_size

    def _parameters(
        self, num_layers: int, *, has_embedding: bool, has_head: bool, tensor: int
    ) -> Parameters:
        shape = self._shape
        attention = sum(i * o for i, o in shape.attention_linears.values())
        mlp = shape.linear_parameters_per_layer - attention
        is_tied = shape.tie_word_embeddings
        # The last stage has its own copy of an embedding whose weights its head shares.
        holds_embedding = has_embedding or (has_head and is_tied)
        linears = [*shape.attention_linears.values(), *shape.mlp_linears.values()]
        # All experts of a layer are one weight.
        largest = max(mlp if shape.num_experts > 1 else 0, *(i * o for i, o in linears))
        if holds_embedding or has_head:
            largest = max(largest, self._output)
        return Parameters(
            attention=num_layers * attention // tensor,
            mlp=num_layers * mlp // tensor,
            other=num_layers * (shape.parameters_per_layer - shape.linear_parameters_per_layer)
            + shape.norm_parameters * has_head,
            embedding=shape.embedding_parameters // (tensor if is_tied else 1) * holds_embedding,
            lm_head=shape.lm_head_parameters // tensor * has_head,
            head=self._output // tensor * has_head,
            largest=largest // tensor,
        )


def weight_bytes(shard: RankShard, sizes: GroupBytes) -> int:
    """Bytes of all weights of a shard, each group in its own precision."""
    parameters = shard.parameters
    if sizes.is_uniform:
        return sizes.residual * parameters.total
    return (
        sizes.attention * parameters.attention
        + sizes.mlp * parameters.mlp
        + sizes.norm * parameters.other
        + sizes.embedding * parameters.embedding
        + sizes.lm_head * parameters.lm_head
    )


def fraction_of_16_bit(shard: RankShard, sizes: GroupBytes) -> float:
    """The fraction of the weights that is in 16 bit, if precisions are mixed."""
    return (FP32_BYTES - weight_bytes(shard, sizes) / shard.parameters.total) / 2
