"""Scripts of allocations: what they repeat, and what they grow with."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from small_shapes import small_shape

from autotune.knob_values import Attention, CheckpointScope
from autotune.predictor.reserved.allocator import Allocator
from autotune.profile import AllocationScript, Recipe, Variant
from autotune.profile import script_trace as script_trace_module
from autotune.profile.script import Event, MicroStep
from autotune.profile.script_trace import trace_script
from autotune.question.workload import ModelShape

SEQ_LEN = 64
PLAIN = Recipe(variant=Variant(attention=Attention.SDPA, element_bytes=2))

RECIPES = {
    "plain": PLAIN,
    "checkpoints": replace(PLAIN, checkpoint_interval=1),
    "checkpoints of two layers": replace(PLAIN, checkpoint_interval=2),
    "checkpoints of MLPs": replace(
        PLAIN, checkpoint_interval=1, checkpoint_scope=CheckpointScope.MLP
    ),
    "tiles": replace(PLAIN, mlp_tiles=2, loss_tiles=2),
    "Ulysses": replace(PLAIN, sequence_parallel_size=2),
    "gathered weights": replace(PLAIN, gathers_weights=True),
    "gathered weights, re-entrant checkpoints": replace(
        PLAIN, gathers_weights=True, checkpoint_interval=1
    ),
    "adapters": Recipe(variant=replace(PLAIN.variant, lora_rank=4, lora_targets=("all-linear",))),
}


def run(step: MicroStep) -> tuple[int, int]:
    """Peaks of one forward and backward, whose gradients stay."""
    allocator = Allocator()
    live: dict[int, int] = {}
    for kind, which, told in step.events:
        if kind == Event.ALLOCATE:
            live[which] = allocator.allocate(told)
        elif kind == Event.FREE:
            allocator.free(live.pop(which))
        elif kind == Event.WORK:
            allocator.free(allocator.allocate(told))
    return allocator.peak_reserved_bytes, allocator.peak_allocated_bytes


def llama(folder: Path, num_layers: int) -> ModelShape:
    return small_shape(folder, "llama", num_hidden_layers=num_layers)


@pytest.mark.slow
@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES.keys())
def test_a_repeated_group_stands_for_all_layers(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shape = llama(tmp_path, 13)
    repeated = trace_script(shape, recipe, SEQ_LEN)
    monkeypatch.setattr(script_trace_module, "_NUM_GROUPS", ())
    whole = trace_script(shape, recipe, SEQ_LEN)
    assert whole.repeat is None
    step, whole_step = repeated.micro_step(256), whole.micro_step(256)
    assert len(step.events) == len(whole_step.events)
    assert run(step) == run(whole_step)
    assert step.weights == whole_step.weights


def test_every_weight_that_is_trained_gets_a_gradient_once(tmp_path: Path) -> None:
    step = trace_script(llama(tmp_path, 9), PLAIN, SEQ_LEN).micro_step(2)
    ready = sorted(told for kind, _, told in step.events if kind == Event.READY)
    assert ready == list(range(len(step.weights)))


def test_activations_grow_with_the_batch_and_gradients_do_not(tmp_path: Path) -> None:
    script = trace_script(llama(tmp_path, 3), PLAIN, SEQ_LEN)
    for storage, weight in script.ready.items():
        assert script.sizes[storage] == (script.weights[weight].size_bytes, 0)
    hidden = 2 * 64 * SEQ_LEN
    assert (0, hidden) in script.sizes


def test_a_script_is_the_same_after_json(tmp_path: Path) -> None:
    script = trace_script(llama(tmp_path, 5), PLAIN, SEQ_LEN)
    record: Any = json.loads(json.dumps(script.to_dict()))
    assert AllocationScript.from_dict(record) == script


def test_layers_of_two_kinds_repeat_together(tmp_path: Path) -> None:
    kinds = ["sliding_attention", "full_attention"]
    shape = small_shape(
        tmp_path,
        "gemma3_text",
        num_hidden_layers=10,
        num_key_value_heads=2,
        head_dim=16,
        sliding_window=16,
        layer_types=kinds * 5,
    )
    script = trace_script(shape, PLAIN, SEQ_LEN)
    assert script.repeat is not None
    assert script.repeat.times == 2


def test_a_module_fetches_its_weights_before_it_needs_them_and_releases_them(
    tmp_path: Path,
) -> None:
    shape = llama(tmp_path, 4)
    recipe = replace(PLAIN, gathers_weights=True, checkpoint_interval=1)
    step = trace_script(shape, recipe, SEQ_LEN).micro_step(2)
    at: dict[int, list[str]] = {}
    for kind, _, told in step.events:
        if kind in (Event.FETCH, Event.RELEASE):
            for weight in step.modules[told]:
                at.setdefault(weight, []).append(Event(kind).name)
    # Forward, forward again, backward; the embedding is not told when backward is done with it.
    assert len(at) == len(step.weights)
    assert all(kinds[:2] == ["FETCH", "RELEASE"] for kinds in at.values())
    layer = next(weight for weight, kinds in at.items() if len(kinds) == 6)
    assert at[layer] == ["FETCH", "RELEASE"] * 3


def test_ulysses_keeps_half_the_tokens_of_each_rank(tmp_path: Path) -> None:
    shape = llama(tmp_path, 4)
    whole = run(trace_script(shape, PLAIN, SEQ_LEN).micro_step(64))[1]
    half = run(trace_script(shape, RECIPES["Ulysses"], SEQ_LEN).micro_step(64))[1]
    # More than half: what attention gives back is kept in both of its layouts.
    assert 0.5 * whole < half < 0.7 * whole
