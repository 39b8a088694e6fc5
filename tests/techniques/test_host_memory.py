"""What offloading keeps on the host: predicted against real engines, and against real hosts."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from host_memory_facts import host_memory_facts

from autotune.predictor import host_memory
from autotune.predictor.host_memory import offloaded_bytes
from autotune.question.workload import Method, Workload, load_model_shape
from autotune.space.strategy import Strategy

GIB = 2**30
CASES: dict[str, dict[str, Any]] = {
    "ZeRO-1": {"zero_stage": 1},
    "ZeRO-2": {"zero_stage": 2},
    "ZeRO-2, one micro-step": {"zero_stage": 2, "micro_batch_size": 4},
    "ZeRO-2, all in bf16": {"zero_stage": 2, "master_weights": "bf16"},
    "ZeRO-3": {"zero_stage": 3},
    "ZeRO-3, weights too": {"zero_stage": 3, "offload_param": "cpu"},
    "adapters, weights too": {"zero_stage": 3, "offload_param": "cpu", "lora_rank": 8},
}


@pytest.fixture(scope="module")
def held(tiny: Workload, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What two CPU ranks kept, by the name of the case."""
    cases = {name: {"offload_optimizer": "cpu"} | knobs for name, knobs in CASES.items()}
    return host_memory_facts(tmp_path_factory.mktemp("host"), tiny, cases)


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_tensors_of_engines_are_counted(
    held: dict[str, Any], tiny: Workload, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # On the CPU nothing is pinned.
    monkeypatch.setattr(host_memory, "_pinned", float)
    knobs = {"micro_batch_size": 2, "offload_optimizer": "cpu"} | CASES[name]
    strategy = Strategy.from_dict(knobs)
    accumulation = tiny.global_batch_size // (2 * strategy.micro_batch_size)
    workload = replace(tiny, method=Method.LORA if strategy.lora_rank else Method.FULL)

    expected = offloaded_bytes(workload, strategy, 2, accumulation)

    # A weight on the border of two parts is accumulated by both ranks.
    assert held[name]["bytes"] == pytest.approx(expected, rel=0.005)


def _on_the_host(model: str, num_ranks: int, accumulation: int = 1, **knobs: Any) -> float:
    workload = Workload(model=load_model_shape(model), seq_len=1024, global_batch_size=8)
    strategy = Strategy.from_dict({"offload_optimizer": "cpu"} | knobs)
    return offloaded_bytes(workload, strategy, num_ranks, accumulation) / GIB


@pytest.mark.parametrize(
    ("measured_gib", "model", "accumulation", "knobs"),
    [
        (28.9, "1.1B", 1, {"zero_stage": 1}),
        (31.6, "1.1B", 4, {"zero_stage": 2}),
        (16.8, "1.1B", 4, {"zero_stage": 2, "master_weights": "bf16"}),
        (21.4, "1.1B", 1, {"zero_stage": 3}),
        (65.5, "3B", 1, {"zero_stage": 2}),
        (33.1, "3B", 1, {"zero_stage": 3, "master_weights": "bf16"}),
    ],
)
def test_powers_of_two_are_pinned_as_on_one_h100(
    measured_gib: float, model: str, accumulation: int, knobs: dict[str, Any]
) -> None:
    """`results/host-memory/h100.txt`; a rank that offloads nothing held 0.7 GiB."""
    assert measured_gib - 0.8 < _on_the_host(model, 1, accumulation, **knobs) < measured_gib


@pytest.mark.parametrize(
    "knobs",
    [
        {"zero_stage": 1, "tensor_parallel_size": 2},
        {"zero_stage": 2},
        {"zero_stage": 2, "sequence_parallel_size": 2},
    ],
)
def test_what_the_kernel_killed_for_want_of_host_memory_does_not_fit(
    knobs: dict[str, Any],
) -> None:
    """13B on two H200, whose host has 251.8 GiB: `results/several-gpus/search-13B-2xH200`."""
    assert _on_the_host("13B", 2, **knobs) > 251.8


def test_what_ran_there_fits() -> None:
    """`results/several-gpus/search-13B-2xH100`: two ranks held 230.7 GiB."""
    assert _on_the_host("13B", 2, zero_stage=3) == pytest.approx(230.7, abs=1.5)


def test_adapters_take_little_of_the_host(tiny: Workload) -> None:
    lora = replace(tiny, method=Method.LORA)
    strategy = Strategy.from_dict({"zero_stage": 2, "offload_optimizer": "cpu", "lora_rank": 8})
    trained = lora.num_trainable_parameters(8, strategy.lora_targets)
    assert 18 * trained <= offloaded_bytes(lora, strategy, 1, 1) <= 2 * 18 * trained


def test_nothing_is_held_where_nothing_is_offloaded(tiny: Workload) -> None:
    assert offloaded_bytes(tiny, Strategy.from_dict({"zero_stage": 3}), 2, 4) == 0
