"""Traces a script from the real code of a model, with its techniques on.

Twice, with two sizes of batch, so that what grows with it is told from what does not. Needs a
process in which `stand_in_for_triton` was called, for variants with Liger.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from autotune.knob_values import CheckpointScope, Experts
from autotune.profile.gpu_kernels import attention_workspace_bytes, gpu_kernels
from autotune.profile.liger import as_on_a_gpu, launches_told_to
from autotune.profile.script import AllocationScript, Repeat
from autotune.profile.script_run import Run
from autotune.profile.skeleton import build_skeleton, layer_kinds, shortened_to
from autotune.profile.tape import Tape
from autotune.profile.ulysses import exchanged_heads
from autotune.profile.variant import Recipe
from autotune.profile.workspaces import Workspace, WorkspaceKind
from autotune.question.workload import ModelShape
from autotune.space.strategy import Strategy
from autotune.techniques.blocks import attention_blocks, decoder_layers, mlp_blocks
from autotune.techniques.checkpointing import checkpoint_layers
from autotune.techniques.loss_tiles import tile_loss
from autotune.techniques.mlp_tiles import tile_mlps
from autotune.techniques.sequence_parallel import shard_tokens

__all__ = ["trace_script"]

_NUM_SAMPLES = (2, 4)
_NUM_GROUPS = (3, 5)
"""Groups of layers that are traced: the first and the last may differ from those between."""


def trace_script(shape: ModelShape, recipe: Recipe, seq_len: int) -> AllocationScript:
    """The script of a model that is trained by a recipe.

    Raises:
        ValueError: batches of other sizes do other things.
        Exception: of any kind, where the model's code cannot be followed without values.
    """
    with FakeTensorMode():
        # Adapters and other kernels make equal layers unequal nowhere, and take long to put in.
        bare = replace(recipe.variant, fused_kernels=False, lora_rank=0, lora_targets=())
        kinds = layer_kinds(build_skeleton(shape, bare), shape.num_hidden_layers)
        group = _group(kinds, recipe.checkpoint_span)
        for num_groups in _NUM_GROUPS:
            num_layers = num_groups * group + len(kinds) % group
            if num_layers < len(kinds):
                runs = _runs(shortened_to(shape, num_layers), recipe, seq_len)
                repeat = runs[0].repeat(group, (len(kinds) - num_layers) // group)
                if repeat is not None:
                    return _script(runs, repeat)
        return _script(_runs(shape, recipe, seq_len), None)


def _group(kinds: list[Any], span: int) -> int:
    """The least number of layers after which kinds and checkpoints are as before."""
    period = next(
        p
        for p in range(1, len(kinds) + 1)
        if all(a == b for a, b in zip(kinds, kinds[p:], strict=False))
    )
    return math.lcm(period, span)


@contextmanager
def _model(shape: ModelShape, recipe: Recipe) -> Iterator[nn.Module]:
    with ExitStack() as stack:
        stack.enter_context(gpu_kernels())
        model = build_skeleton(shape, recipe.variant)
        _put_techniques(model, shape.num_hidden_layers, recipe)
        yield model


def _put_techniques(model: nn.Module, num_layers: int, recipe: Recipe) -> None:
    """As `techniques/apply.py` does."""
    layers: Any = decoder_layers(model, num_layers)
    if recipe.mlp_tiles > 1:
        tile_mlps(mlp_blocks(layers), recipe.mlp_tiles)
    if recipe.loss_tiles > 1:
        tile_loss(model, recipe.loss_tiles)
    if recipe.gathers_weights:
        for number, weight in enumerate(model.parameters()):
            # By which checkpoints know ZeRO-3's.
            weight.ds_id = number  # type: ignore[attr-defined]
    if recipe.checkpoint_interval:
        if recipe.checkpoint_scope is CheckpointScope.ATTENTION:
            layers = attention_blocks(layers)
        elif recipe.checkpoint_scope is CheckpointScope.MLP:
            layers = mlp_blocks(layers)
        checkpoint_layers(layers, recipe.checkpoint_interval)


def _runs(shape: ModelShape, recipe: Recipe, seq_len: int) -> list[Run]:
    with _model(shape, recipe) as model:
        if recipe.checkpoint_span > 1:
            # The first forward of all keeps every layer's input; see `_Span.call`.
            _warm_up(model, seq_len)
        return [_run(model, shape.num_hidden_layers, recipe, n, seq_len) for n in _NUM_SAMPLES]


def _run(model: nn.Module, num_layers: int, recipe: Recipe, samples: int, seq_len: int) -> Run:
    ids = torch.zeros(samples, seq_len, dtype=torch.long)
    num_ranks, batch = recipe.sequence_parallel_size, {"input_ids": ids, "labels": ids}
    with ExitStack() as stack:
        if num_ranks > 1:
            strategy = Strategy(zero_stage=2, sequence_parallel_size=num_ranks)
            batch = shard_tokens(ids, ids, strategy, shard=0)
            stack.enter_context(exchanged_heads(model, num_ranks, samples))
        return Run(
            model,
            num_layers,
            batch,
            gathers_weights=recipe.gathers_weights,
            has_expert_loop=recipe.variant.experts is Experts.EAGER,
        )


def _warm_up(model: nn.Module, seq_len: int) -> None:
    ids = torch.zeros(1, seq_len, dtype=torch.long)
    tape = Tape(attention_workspace_bytes)
    with launches_told_to(tape.launch), as_on_a_gpu(), tape:
        model(input_ids=ids, labels=ids, use_cache=False)


def _script(runs: Sequence[Run], repeat: Repeat | None) -> AllocationScript:
    first, second = runs
    if first.events != second.events or first.ready != second.ready:
        raise ValueError("batches of other sizes allocate in another order")
    return AllocationScript(
        events=tuple(first.events),
        sizes=tuple(
            _line(first.samples, second.samples, *sizes)
            for sizes in zip(first.sizes, second.sizes, strict=True)
        ),
        workspaces=tuple(
            _workspace(first.samples, second.samples, one, other)
            for one, other in zip(first.workspaces, second.workspaces, strict=True)
        ),
        weights=first.weights,
        ready=first.ready,
        repeat=repeat,
        modules=tuple(first.modules),
    )


def _workspace(
    x1: int,
    x2: int,
    one: tuple[WorkspaceKind, int, int, int],
    other: tuple[WorkspaceKind, int, int, int],
) -> Workspace:
    kind, rows, width, tokens = one
    fixed, of_sample = _line(x1, x2, tokens, other[3])
    return Workspace(kind=kind, rows=rows, width=width, fixed=fixed, of_sample=of_sample)


def _line(x1: int, x2: int, y1: int, y2: int) -> tuple[int, int]:
    """Through two points: its value at zero, and its slope."""
    slope = (y2 - y1) // (x2 - x1)
    return y1 - slope * x1, slope
