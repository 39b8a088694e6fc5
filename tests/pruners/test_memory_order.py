"""The order of strategies by memory: what is in it, what is not, whether numbers agree."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import pytest

from autotune.errors import ConfigError
from autotune.knob_values import LossClass, Optimizer
from autotune.machine.hardware import DEVICE_KINDS, DeviceType, Hardware
from autotune.predictor import AnalyticPredictor
from autotune.pruners.memory_order import holds_as_much, needs_as_much
from autotune.question.workload import Workload, load_model_shape
from autotune.space.strategy import KNOBS, LOSS_CLASSES, Strategy


def strategy(**knobs: Any) -> Strategy:
    return Strategy.from_dict({"zero_stage": 3, "micro_batch_size": 4} | knobs)


ORDERED: list[tuple[dict[str, Any], dict[str, Any]]] = [
    # What needs less, what needs more.
    ({"micro_batch_size": 4}, {"micro_batch_size": 8}),
    ({"checkpoint_interval": 3}, {"checkpoint_interval": 0}),
    ({"checkpoint_interval": 1, "checkpoint_scope": "mlp"}, {}),
    (
        {"checkpoint_interval": 1, "offload_checkpoints": "cpu"},
        {"checkpoint_interval": 1},
    ),
    ({"mlp_tiles": 8}, {"mlp_tiles": 2}),
    ({"mlp_tiles": 2}, {}),
    ({"loss_tiles": 8}, {"loss_tiles": 2}),
    ({"fused_kernels": True}, {}),
    ({}, {"attention": "eager"}),
    ({"reduce_bucket_size": 1_000_000}, {}),
    ({"overlap_comm": False}, {}),
    ({"zero_hpz_partition_size": 4}, {"zero_hpz_partition_size": 2}),
    ({}, {"zero_hpz_partition_size": 8}),
    ({"offload_optimizer": "cpu"}, {}),
    ({"offload_optimizer": "nvme"}, {}),
    ({"offload_optimizer": "cpu"}, {"offload_optimizer": "cpu", "offload_ratio": 0.5}),
    ({"offload_optimizer": "cpu", "offload_ratio": 0.5}, {}),
    ({"offload_param": "cpu"}, {}),
    ({"offload_param": "nvme"}, {}),
    ({"optimizer": "paged_adamw_8bit"}, {"optimizer": "adamw_8bit"}),
    ({"optimizer": "lion_8bit"}, {"optimizer": "lion"}),
    ({"optimizer": "lion"}, {"optimizer": "adamw"}),
    ({"optimizer": "sgd"}, {"optimizer": "adamw"}),
    ({"master_weights": "bf16"}, {}),
]


@pytest.mark.parametrize(("less", "more"), ORDERED)
def test_one_knob_is_enough_for_an_order_and_it_has_one_direction(
    less: dict[str, Any], more: dict[str, Any]
) -> None:
    small, large = strategy(**less), strategy(**more)

    assert needs_as_much(large, small)
    assert not needs_as_much(small, large)


IN_NO_ORDER: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"zero_stage": 2}, {"zero_stage": 1}),
    ({"zero_stage": 1, "tensor_parallel_size": 2}, {"zero_stage": 1}),
    ({"zero_stage": 1, "pipeline_parallel_size": 2}, {"zero_stage": 1}),
    ({"sequence_parallel_size": 2}, {}),
    ({"batching": "padding_free"}, {}),
    ({"checkpoint_interval": 1}, {"checkpoint_interval": 2}),
    (
        {"checkpoint_interval": 1, "checkpoint_scope": "mlp"},
        {"checkpoint_interval": 1, "checkpoint_scope": "attention"},
    ),
    ({"offload_optimizer": "nvme"}, {"offload_optimizer": "cpu"}),
    ({"offload_param": "nvme"}, {"offload_param": "cpu"}),
    ({"optimizer": "muon"}, {"optimizer": "adamw"}),
    ({"precision": "fp32"}, {}),
    ({"zero_stage": 1, "mlp_precision": "fp32"}, {"zero_stage": 1}),
    ({"attention": "flash_attention_2"}, {}),
    ({"experts_implementation": "eager"}, {}),
    ({"zero_stage": 1, "torch_compile": True}, {"zero_stage": 1}),
    ({"zero_quantized_weights": True}, {}),
    ({"zero_quantized_gradients": True}, {}),
    ({"lora_rank": 8}, {"lora_rank": 16}),
    ({"lora_rank": 8, "lora_targets": "mlp"}, {"lora_rank": 8}),
    # One asks for more here, the other there.
    ({"micro_batch_size": 8, "mlp_tiles": 4}, {}),
    ({"fused_kernels": True, "attention": "eager"}, {}),
]


@pytest.mark.parametrize(("one", "other"), IN_NO_ORDER)
def test_what_is_in_no_order_is_in_none_in_either_direction(
    one: dict[str, Any], other: dict[str, Any]
) -> None:
    assert not needs_as_much(strategy(**one), strategy(**other))
    assert not needs_as_much(strategy(**other), strategy(**one))


def test_every_strategy_needs_as_much_as_itself() -> None:
    assert needs_as_much(strategy(), strategy())
    assert holds_as_much(strategy(), strategy())


def test_a_knob_without_an_order_must_be_equal() -> None:
    ordered = {knob for less, more in ORDERED for knob in less | more}
    free = {"tf32", "lora_alpha"}
    examples = {knob for one, other in IN_NO_ORDER for knob in one | other}
    groups = {f"{name}_precision" for name in ("embedding", "attention", "norm", "lm_head")}

    assert set(KNOBS) == ordered | free | examples | groups


@pytest.mark.parametrize(
    "activations",
    [
        {"micro_batch_size": 1},
        {"checkpoint_interval": 2},
        {"mlp_tiles": 4},
        {"loss_tiles": 4},
        {"fused_kernels": True},
        {"attention": "eager"},
    ],
)
def test_before_any_batch_activations_are_of_no_meaning(activations: dict[str, Any]) -> None:
    assert holds_as_much(strategy(**activations), strategy())
    assert holds_as_much(strategy(), strategy(**activations))


def test_before_any_batch_nothing_is_compiled() -> None:
    plain, compiled = strategy(zero_stage=1), strategy(zero_stage=1, torch_compile=True)

    assert holds_as_much(plain, compiled)
    assert holds_as_much(compiled, plain)


def test_before_any_batch_buckets_and_states_still_count() -> None:
    assert not holds_as_much(strategy(reduce_bucket_size=1_000_000), strategy())
    assert not holds_as_much(strategy(optimizer="sgd"), strategy())


@pytest.mark.parametrize(
    ("less", "more"),
    [
        ({"offload_optimizer": "cpu"}, {}),
        ({"offload_param": "cpu"}, {}),
        ({"checkpoint_interval": 1, "offload_checkpoints": "cpu"}, {"checkpoint_interval": 1}),
        ({"checkpoint_interval": 1, "offload_checkpoints": "cpu"}, {}),
        ({"optimizer": "paged_adamw_8bit"}, {"optimizer": "adamw"}),
    ],
)
def test_what_is_on_the_host_does_not_leave_it_by_staying_on_the_device(
    less: dict[str, Any], more: dict[str, Any]
) -> None:
    assert needs_as_much(strategy(**more), strategy(**less))
    assert not needs_as_much(strategy(**more), strategy(**less), of_host=True)


def test_of_the_host_a_larger_share_needs_more() -> None:
    half, whole = (strategy(offload_optimizer="cpu", offload_ratio=r) for r in (0.5, 1.0))

    assert needs_as_much(whole, half, of_host=True)
    assert not needs_as_much(half, whole, of_host=True)


def test_the_order_agrees_with_the_predictor() -> None:
    kind = DEVICE_KINDS["H100-80GB"]
    hardware = Hardware(
        device_type=DeviceType.CUDA,
        device_kind=kind.name,
        num_devices=8,
        device_memory_bytes=kind.memory_bytes,
        host_memory_bytes=2**40,
        flops_per_s=kind.flops_per_s,
        memory_bytes_per_s=kind.memory_bytes_per_s,
    )
    workload = Workload(model=load_model_shape("7B"), seq_len=1024, global_batch_size=512)
    predictor = AnalyticPredictor(workload, hardware)
    choices = [side for pair in ORDERED for side in pair]
    mixed: set[Strategy] = set()
    for one, other in itertools.combinations(choices, 2):
        try:
            mixed.add(strategy(**one | other))
        except ConfigError:
            continue
    memory = {each: predictor.predict(each).peak_memory_bytes for each in mixed}

    pairs = [(a, b) for a, b in itertools.permutations(mixed, 2) if needs_as_much(a, b)]
    assert len(pairs) > 1000
    wrong = [(str(a), str(b)) for a, b in pairs if memory[a] < memory[b]]
    assert wrong == []


def test_an_order_may_cross_knobs_that_change_what_is_learned() -> None:
    changed = [knob for knob, loss in LOSS_CLASSES.items() if loss is LossClass.CHANGING]
    assert "optimizer" in changed

    assert needs_as_much(strategy(), replace(strategy(), optimizer=Optimizer.SGD))
