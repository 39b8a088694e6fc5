"""What a question allows, over the widest space on this kind of machine."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from itertools import islice
from typing import Any

import pytest
from tiers import slow_but

from autotune.errors import ConfigError
from autotune.knob_values import LossClass, ModuleGroup, Precision
from autotune.machine.hardware import DeviceType, Hardware, detect_hardware
from autotune.machine.software import Software
from autotune.question.workload import Method, Workload
from autotune.samplers import OptunaSampler, SamplerKind
from autotune.space.compatibility import conflict, reference_strategy
from autotune.space.search_space import SearchSpace
from autotune.space.space_file import load_search_space
from autotune.space.strategy import Strategy
from autotune.trials.trial import Failure, FailureKind, Trial, TrialState

SOFTWARE = Software(versions={}, has_liger=True, has_compiler=True)
H100 = Hardware(
    device_type=DeviceType.CUDA,
    device_kind="H100-80GB",
    num_devices=2,
    device_memory_bytes=80 * 2**30,
    host_memory_bytes=512 * 2**30,
    flops_per_s=989e12,
    memory_bytes_per_s=3350e9,
    supports_tf32=True,
    supports_fp8=True,
)


@cache
def _listed(method: Method, tiny: Workload, hardware: Hardware) -> SearchSpace:
    """A space keeps the strategies that it has listed once."""
    return _space(method, tiny, hardware)


def _space(method: Method, tiny: Workload, hardware: Hardware) -> SearchSpace:
    return load_search_space("full", replace(tiny, method=method), hardware, SOFTWARE)


def _is_possible_on_a_cpu(strategy: Strategy, method: Method) -> bool:
    """The rules again, in the words of the libraries that would refuse."""
    is_lora = method is not Method.FULL
    return (
        not strategy.fused_kernels
        and strategy.offload_optimizer == "none"
        and 2 % strategy.model_parallel_size == 0
        and 8 % (2 // strategy.model_parallel_size * strategy.micro_batch_size) == 0
        and (strategy.lora_rank > 0) == is_lora
        and not (strategy.optimizer == "adafactor" and strategy.zero_stage)
        and not (method is Method.QLORA and strategy.zero_stage == 3)
        and not (method is Method.QLORA and strategy.precision == "fp32")
        and not (strategy.master_weights == "bf16" and strategy.precision != "bf16")
        and not (strategy.master_weights == "bf16" and strategy.zero_stage == 0)
        and not (
            strategy.precision == "fp16"
            and strategy.zero_stage == 0
            and (strategy.model_parallel_size > 1 or strategy.optimizer == "muon")
        )
    )


@pytest.mark.parametrize("method", slow_but([Method.QLORA], Method))
def test_the_full_space_on_a_cpu_holds_possible_strategies_only(
    method: Method, tiny: Workload, cpu_hardware: Hardware
) -> None:
    strategies = list(_listed(method, tiny, cpu_hardware).strategies())
    assert len(strategies) > 50
    assert all(_is_possible_on_a_cpu(strategy, method) for strategy in strategies)


@pytest.mark.parametrize("method", list(Method))
@pytest.mark.parametrize(
    "kind", [k for k in SamplerKind if k not in (SamplerKind.GP, SamplerKind.PREDICTED)]
)
def test_no_sampler_proposes_what_is_impossible(
    kind: SamplerKind, method: Method, tiny: Workload, cpu_hardware: Hardware
) -> None:
    space = _listed(method, tiny, cpu_hardware)
    sampler = OptunaSampler(space, kind=kind, seed=0)
    crash = Failure(kind=FailureKind.CRASH, message="planted")
    trials: list[Trial] = []
    for number in range(25):
        strategy = sampler.propose(trials)
        assert strategy is not None
        assert _is_possible_on_a_cpu(strategy, method)
        assert space.conflict(strategy) is None
        trials.append(
            Trial(
                number=number,
                strategy=strategy,
                state=TrialState.FAILED,
                failure=crash,
                duration_s=1.0,
            )
        )


def test_fp16_is_refused_on_a_cpu_that_cannot_compute_it(
    tiny: Workload, cpu_hardware: Hardware
) -> None:
    fp16 = Strategy(precision=Precision.FP16, zero_stage=1)
    unable = replace(cpu_hardware, supports_fp16=False)
    assert conflict(fp16, tiny, cpu_hardware, SOFTWARE) is None
    assert "AVX512-FP16" in (conflict(fp16, tiny, unable, SOFTWARE) or "")
    proposed = list(_space(Method.FULL, tiny, unable).strategies())
    assert {s.precision for s in proposed} == set(Precision)
    # There DeepSpeed's own fp16 stays off.
    assert {s.zero_stage for s in proposed if s.precision is Precision.FP16} == {0}


def test_a_group_in_fp16_asks_nothing_of_the_cpu(tiny: Workload, cpu_hardware: Hardware) -> None:
    # Beside other precisions DeepSpeed's own fp16 stays off, and torch computes it anywhere.
    unable = replace(cpu_hardware, supports_fp16=False)
    strategy = Strategy.from_dict({"mlp_precision": "fp16", "zero_stage": 1})
    assert conflict(strategy, tiny, unable, SOFTWARE) is None


def test_the_reference_of_a_gpu_without_bf16_is_fp16(
    tiny: Workload, cpu_hardware: Hardware
) -> None:
    old = replace(cpu_hardware, device_type=DeviceType.CUDA, supports_bf16=False)
    reference = reference_strategy(tiny, old)
    assert reference.precision is Precision.FP16
    assert conflict(reference, tiny, old, SOFTWARE) is None


@pytest.mark.parametrize("has_bf16", [False, True])
def test_the_reference_of_a_cpu_is_in_what_it_has_instructions_for(
    tiny: Workload, cpu_hardware: Hardware, has_bf16: bool
) -> None:
    cpu = replace(cpu_hardware, supports_bf16=has_bf16, supports_fp16=False)
    reference = reference_strategy(tiny, cpu)
    assert reference.precision is (Precision.BF16 if has_bf16 else Precision.FP32)
    assert conflict(reference, tiny, cpu, SOFTWARE) is None


@pytest.mark.parametrize("method", [Method.FULL, Method.LORA])
@pytest.mark.parametrize("space", ["default", "memory", "full"])
def test_nothing_in_bf16_is_proposed_to_a_cpu_without_it(
    tiny: Workload, cpu_hardware: Hardware, space: str, method: Method
) -> None:
    cpu = replace(cpu_hardware, supports_bf16=False)
    workload = replace(tiny, method=method)
    found = load_search_space(space, workload, cpu, SOFTWARE)
    proposed = list(islice(found.strategies(), 400))
    assert proposed
    assert not any(Precision.BF16 in strategy.parameter_precisions for strategy in proposed)
    neutral = [s for s in proposed if s.loss_class(found.reference) is LossClass.NEUTRAL]
    assert neutral or space != "default"
    assert {strategy.precision for strategy in neutral} <= {Precision.FP32}


def test_qlora_is_refused_on_a_cpu_without_16_bit(tiny: Workload, cpu_hardware: Hardware) -> None:
    cpu = replace(cpu_hardware, supports_bf16=False, supports_fp16=False)
    workload = replace(tiny, method=Method.QLORA)
    words = conflict(reference_strategy(workload, cpu), workload, cpu, SOFTWARE)
    assert words is not None
    assert "QLoRA computes in 16 bit" in words


FP8 = {"attention_precision": "fp8", "mlp_precision": "fp8"}


@pytest.mark.parametrize(
    ("knobs", "reason"),
    [
        ({"precision": "fp16", "sequence_parallel_size": 2}, "sequence_parallel_size 1, got 2"),
        ({"precision": "fp16", "pipeline_parallel_size": 2}, "pipeline_parallel_size 1, got 2"),
        (
            {"precision": "fp16", "optimizer": "muon"},
            "for one group, needs an optimizer other than muon",
        ),
        ({"embedding_precision": "fp8"}, "embedding_precision cannot be fp8"),
        ({"norm_precision": "fp8"}, "norm_precision cannot be fp8"),
        ({"mlp_precision": "fp8", "precision": "fp32"}, "fp8 needs precision bf16, got fp32"),
        (FP8 | {"tensor_parallel_size": 2}, "fp8 needs tensor_parallel_size 1"),
        (FP8 | {"pipeline_parallel_size": 2}, "fp8 needs pipeline_parallel_size 1"),
        ({"lm_head_precision": "fp8", "fused_kernels": True}, "fused_kernels false"),
        ({"lm_head_precision": "fp32", "fused_kernels": True}, "fused_kernels false"),
        ({"norm_precision": "fp32", "zero_stage": 3}, "zero_stage 0, 1 or 2, got 3"),
        ({"norm_precision": "fp32", "tensor_parallel_size": 2}, "tensor_parallel_size 1, got 2"),
        (
            {"norm_precision": "fp32", "optimizer": "muon", "zero_stage": 1},
            "need an optimizer other than muon",
        ),
        (
            {"norm_precision": "fp32", "zero_stage": 1, "master_weights": "bf16"},
            "master_weights fp32, got bf16",
        ),
        (
            {"norm_precision": "fp32", "zero_stage": 1, "offload_optimizer": "cpu"},
            "offload_optimizer none",
        ),
        ({"mlp_precision": "fp16", "zero_stage": 1, "lora_rank": 8}, "needs zero_stage 0 or lora"),
        (
            {f"{group}_precision": "fp32" for group in ModuleGroup},
            "no group of modules uses precision bf16",
        ),
        ({"tf32": True}, "tf32 needs precision fp32"),
    ],
    ids=str,
)
def test_precisions_that_cannot_work_together_are_refused(
    knobs: dict[str, Any], reason: str
) -> None:
    with pytest.raises(ConfigError, match=reason):
        Strategy.from_dict(knobs)


@pytest.mark.parametrize(
    ("knobs", "changes", "reason"),
    [
        (FP8, {}, "compute capability 8.9 or above: A100-40GB is not one"),
        ({"precision": "fp32", "tf32": True}, {"supports_tf32": False}, "capability 8.0"),
        ({"norm_precision": "bf16"}, {"supports_bf16": False}, "A100-40GB has no bf16"),
    ],
    ids=str,
)
def test_a_precision_that_the_device_lacks_is_refused(
    tiny: Workload, knobs: dict[str, Any], changes: dict[str, bool], reason: str
) -> None:
    a100 = replace(H100, device_kind="A100-40GB", supports_fp8=False, supports_tf32=True)
    words = conflict(Strategy.from_dict(knobs), tiny, replace(a100, **changes), SOFTWARE)
    assert words is not None
    assert reason in words


@pytest.mark.parametrize(
    ("knobs", "model", "method", "reason"),
    [
        (FP8, {"model_type": "gpt2"}, "full", "has convolutions instead"),
        (FP8, {"num_experts": 8}, "full", "the experts of tiny are not linear layers"),
        (FP8, {"intermediate_size": 250}, "full", "multiples of 16, got 96 x 250 (gate_proj"),
        ({"lm_head_precision": "fp8"}, {"vocab_size": 50257}, "full", "got 96 x 50257"),
        (FP8 | {"lora_rank": 16}, {}, "qlora", "whose weights have 4 bits"),
        ({"mlp_precision": "fp32", "lora_rank": 16}, {}, "qlora", "4-bit layers compute in"),
        ({"embedding_precision": "fp32"}, {"tie_word_embeddings": True}, "full", "must be equal"),
    ],
    ids=str,
)
def test_a_precision_that_the_model_cannot_have_is_refused(
    tiny: Workload, knobs: dict[str, Any], model: dict[str, Any], method: str, reason: str
) -> None:
    workload = replace(tiny, model=replace(tiny.model, **model), method=Method(method))
    words = conflict(Strategy.from_dict(knobs), workload, H100, SOFTWARE)
    assert words is not None
    assert reason in words


@pytest.mark.parametrize(
    "knobs",
    [
        FP8 | {"lm_head_precision": "fp8", "zero_stage": 3, "checkpoint_interval": 2},
        FP8 | {"norm_precision": "fp32", "zero_stage": 2},
        FP8 | {"master_weights": "bf16", "zero_stage": 1, "offload_optimizer": "cpu"},
        {"precision": "fp32", "attention_precision": "bf16", "tf32": True},
        {"embedding_precision": "fp32", "mlp_precision": "fp16", "zero_stage": 1},
        {"embedding_precision": "fp32", "mlp_precision": "fp16"},
        {"precision": "fp16"},
    ],
    ids=str,
)
def test_precisions_that_work_together_are_allowed(tiny: Workload, knobs: dict[str, Any]) -> None:
    assert conflict(Strategy.from_dict(knobs), tiny, H100, SOFTWARE) is None


@pytest.mark.slow
def test_fp16_is_proposed_only_where_deepspeed_takes_it() -> None:
    import torch

    if detect_hardware().supports_fp16:
        assert torch.ops.mkldnn._is_mkldnn_fp16_supported()
