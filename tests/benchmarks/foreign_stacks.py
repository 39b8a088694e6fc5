"""Peak memory of runs under other stacks than DeepSpeed, by the rules of each stack.

Activations and logits are the predictor's (`token_bytes`); who keeps which copies, and for how
long, is read from the code that ran. Does not know files, nor what was measured.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from foreign_layers import dropout_bytes

from autotune.knob_values import GroupPrecision, Precision
from autotune.predictor.memory.activations import token_bytes
from autotune.question.workload import Method, Workload
from autotune.space.strategy import Strategy

__all__ = ["FOREIGN_STACKS", "ForeignPeak", "Stack", "foreign_peak", "stack_of"]

FOREIGN_STACKS = ("none", "fsdp1", "fsdp1 NO_SHARD/ddp", "fsdp2")

_NF4_BYTES = 0.516
"""With double quantization (`predictor/memory/states.py`)."""

_LOSS_CHUNKS = 8
"""torchtune, `modules/loss/ce_chunked_output_loss.py`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Stack:
    """What one stack does otherwise than DeepSpeed with transformers 5."""

    num_shards: int
    """Ranks over which weights, gradients and states are divided."""
    retains_inputs: bool
    """FSDP1 hooks the inputs of frozen units to reshard them (`fsdp/_runtime_utils.py`,
    `_register_post_backward_reshard_only_hook`). The hook's closure holds the node that holds the
    input (`autograd/graph.py`, `register_multi_grad_hook`). Where transformers recomputes an FSDP
    unit, that input is a detached leaf: it and its gradient stay until backward ends and the hooks
    are removed. Where FSDP wraps the recomputation (fsdp_qlora), or the unit is trained, nothing
    stays. Seen by counting live tensors at the end of backward, torch 2.13 on the CPU."""
    has_outer_units: bool
    """Embedding and output projection are units of their own, not of the root, which stays
    gathered (torchtune, `custom_sharded_layers` of `llama3_1/70B_full.yaml`)."""
    is_offloaded: bool
    """FSDP keeps its shards on the host."""
    adapter_bytes: int
    """PEFT from 0.12 on casts adapters of a 16-bit model to fp32 (`autocast_adapter_dtype`)."""
    adapter_input_bytes: int
    """Of what an adapter computes in: its weights' precision, or that of autocast."""
    has_dropout: bool
    """Before each adapter (`peft/tuners/lora/layer.py`)."""
    logits_kept: int
    """Bytes of a logit that the caller's variable holds through backward: the loops of fsdp_qlora
    (`train.py`) and can-i-finetune (`bench/runner.py`) keep the model's output until the step is
    over, transformers' trainer does not."""
    stream: Precision
    """Of the residual stream. `prepare_model_for_kbit_training` puts norms into fp32, and a 4-bit
    layer returns what it was given. TRL leaves it out where FSDP divides 4-bit weights
    (`is_sharded_qlora`)."""
    attention: GroupPrecision
    outer_bytes: int
    """Of an embedding's and an output projection's weight."""
    moment_bytes: float
    """Of both moments of one trained parameter, on the device and known to the allocator."""
    step_bytes: int
    """Temporaries of the optimizer for one parameter: torch's `foreach` makes one copy."""
    steps_in_backward: bool
    """Each gradient is used up as soon as it is there."""
    moves_inputs: bool
    """Checkpoints wait on the host."""
    loss_chunks: int
    """Parts of the tokens whose loss is computed one after the other."""
    is_compiled: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class ForeignPeak:
    """Bytes of live tensors, and those of them that stay from step to step."""

    allocated_bytes: float
    lasting_bytes: float


def stack_of(row: Mapping[str, str]) -> Stack:
    """The rules of a row's stack, by its source."""
    source, shards = row["source"], row["shard_impl"]
    is_divided = shards in ("fsdp1", "fsdp2")
    is_quantized = row["method"] == "qlora"
    is_torchtune, is_fms = "torchtune" in source, "foundation-model" in source
    is_own_loop = "can-i-finetune" in source
    is_prepared = is_quantized and not is_divided and (is_fms or is_own_loop)
    adapter_bytes = 4 if is_fms or is_own_loop else 2
    trained_bytes = 2 if row["method"] == "full" else adapter_bytes
    logits_kept = 0
    if is_own_loop:
        logits_kept = 4 if is_prepared else 2
    elif "fsdp_qlora" in source:
        logits_kept = 4
    return Stack(
        num_shards=int(row["num_gpus"]) if is_divided else 1,
        retains_inputs=shards == "fsdp1" and is_fms and row["method"] != "full",
        has_outer_units=shards == "fsdp2" and row["method"] == "full",
        is_offloaded=is_divided and "cpu" in row["offload"],
        adapter_bytes=adapter_bytes,
        adapter_input_bytes=2 if "trainer bf16" in row["precision"] else adapter_bytes,
        has_dropout=row["method"] != "full" and (is_fms or "fsdp_qlora" in source),
        logits_kept=logits_kept,
        stream=Precision.FP32 if is_prepared else Precision.BF16,
        # The trainer of fms autocasts. The loop of can-i-finetune did not: after forward its
        # records hold eight bytes a logit, four of them the logits themselves.
        attention=GroupPrecision.BF16 if is_prepared and is_fms else GroupPrecision.SAME,
        outer_bytes=4 if is_prepared and is_own_loop else 2,
        moment_bytes=_moment_bytes(row["optimizer"], trained_bytes),
        step_bytes=0 if is_torchtune else trained_bytes,
        steps_in_backward="in_bwd" in row["optimizer"],
        moves_inputs="act_cpu" in row["offload"],
        loss_chunks=_LOSS_CHUNKS if _has_chunked_loss(row) else 1,
        is_compiled=is_torchtune and not row["notes"].startswith("+Packed"),
    )


def _has_chunked_loss(row: Mapping[str, str]) -> bool:
    """The ladder of torchtune's README adds it after packing and compiling; its model table,
    where all is compiled, has it (`recipes/configs/llama3_1`)."""
    if "torchtune" not in row["source"]:
        return False
    return not row["notes"].startswith(("+Packed", "+Compile"))


def _moment_bytes(optimizer: str, trained_bytes: int) -> float:
    """Paged moments are managed memory, of which torch's allocator knows nothing. 8-bit ones have
    an fp32 absmax for each block of 256; that bitsandbytes keeps embeddings' in fp32 has to be
    asked for, which torchtune does not."""
    if "paged" in optimizer.lower():
        return 0.0
    return 2 * (1 + 4 / 256) if "8bit" in optimizer else 2.0 * trained_bytes


def foreign_peak(workload: Workload, strategy: Strategy, stack: Stack) -> ForeignPeak:
    """The greatest of loss, backward, its end, and the optimizer step."""
    run = _Run(workload, strategy, stack)
    moments = (run.loss(), run.backward(), run.end_of_backward(), run.step())
    return ForeignPeak(allocated_bytes=max(moments), lasting_bytes=run.stays)


class _Run:
    """One rank of one run."""

    def __init__(self, workload: Workload, strategy: Strategy, stack: Stack) -> None:
        shape = workload.model
        self._shape, self._stack = shape, stack
        self._tokens = strategy.micro_batch_size * workload.seq_len
        self._is_full = workload.method is Method.FULL
        self._is_checkpointed = strategy.checkpoint_interval > 0
        targets = workload.adapter_targets("")
        self._token = token_bytes(
            shape,
            replace(
                strategy,
                precision=stack.stream,
                attention_precision=stack.attention,
                torch_compile=stack.is_compiled,
            ),
            lora_targets=targets,
            seq_len=workload.seq_len,
        )
        self._layer = self._token.layer
        if stack.has_dropout:
            self._layer += dropout_bytes(
                shape, targets, adapter_bytes=stack.adapter_input_bytes, element_bytes=2
            )
        self._outer = shape.embedding_parameters + shape.lm_head_parameters
        self._linear_bytes = _NF4_BYTES if workload.method is Method.QLORA else 2.0
        self._trained = workload.num_trainable_parameters(strategy.lora_rank) / stack.num_shards
        self._trained_bytes = 2 if self._is_full else stack.adapter_bytes
        self.stays = 0.0 if stack.is_offloaded else self._lasting()

    def _lasting(self) -> float:
        """Weights, adapters and moments."""
        shape = self._shape
        linears = shape.num_hidden_layers * shape.linear_parameters_per_layer
        rest = shape.num_parameters - linears - self._outer
        weights = self._linear_bytes * linears + 2 * rest + self._stack.outer_bytes * self._outer
        own = self._stack.moment_bytes + (0 if self._is_full else self._stack.adapter_bytes)
        return weights / self._stack.num_shards + own * self._trained

    @property
    def _root(self) -> float:
        """FSDP: the root unit, which stays gathered from forward to the end of backward."""
        if self._stack.num_shards == 1 or self._stack.has_outer_units:
            return 0.0
        return self._stack.outer_bytes * self._outer

    @property
    def _layers(self) -> float:
        """FSDP: the layer at work and the one that is gathered beside it.

        Whole gradients of a layer are there beside the layer's before it, which are still being
        reduced (`fsdp/_fully_shard/_fsdp_param_group.py`, `reduce_scatter_state`).
        """
        if self._stack.num_shards == 1:
            return 0.0
        layer = self._shape.linear_parameters_per_layer
        return 2 * self._linear_bytes * layer + (4.0 * layer if self._is_full else 0.0)

    @property
    def _inputs(self) -> int:
        """Of one token, of all layers, when backward begins."""
        num_layers = self._shape.num_hidden_layers
        if not self._is_checkpointed:
            return num_layers * self._layer
        return (1 if self._stack.moves_inputs else num_layers) * self._token.layer_input

    @property
    def _at_work(self) -> int:
        """Of one token, what the layer at work in backward holds beside inputs."""
        recomputed = self._layer if self._is_checkpointed else 0
        return recomputed + self._token.layer_backward

    @property
    def _head(self) -> float:
        """Of the output projection, in 16 bit."""
        return 2.0 * self._shape.vocab_size * self._shape.hidden_size

    @property
    def _kept_logits(self) -> int:
        return self._stack.logits_kept * self._shape.vocab_size

    def loss(self) -> float:
        """In chunks: all logits in 16 bit, one chunk's gradient, and the sum of the projection's
        gradient beside what is added to it. Compiled, nothing in fp32 is stored."""
        token, chunks = self._token, self._stack.loss_chunks
        loss, others = token.loss, self._root
        if chunks > 1:
            loss = 2 * self._shape.vocab_size * (chunks + 1) // chunks
            others += 2 * self._head if self._is_full else 0.0
        if self._stack.has_outer_units:
            others += self._head
        held = self._inputs + token.head + loss + self._kept_logits
        return self.stays + others + self._tokens * held

    def backward(self) -> float:
        """In the first layer that backward reaches; a root's gradients wait for the end."""
        first = self._head if self._is_full and not self._stack.has_outer_units else 0.0
        held = self._inputs + self._at_work + self._token.head + self._kept_logits
        return self.stays + self._root + self._layers + first + self._tokens * held

    def end_of_backward(self) -> float:
        """In the last layer that backward reaches, beside all other gradients."""
        held = self._layer + self._token.layer_backward + self._kept_logits
        if self._stack.retains_inputs and self._is_checkpointed:
            held += 2 * self._shape.num_hidden_layers * self._token.layer_input
        gradients = 0.0 if self._stack.is_offloaded else self._trained_bytes * self._trained
        if self._stack.steps_in_backward:
            gradients = self._head
        return self.stays + self._root + self._layers + gradients + self._tokens * held

    def step(self) -> float:
        """Gradients and the optimizer's temporaries."""
        if self._stack.is_offloaded or self._stack.steps_in_backward:
            return 0.0
        needed = self._trained_bytes + self._stack.step_bytes
        return self.stays + needed * self._trained
