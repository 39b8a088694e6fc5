"""What a question allows, over the widest space on this kind of machine."""

from __future__ import annotations

from dataclasses import replace

import pytest

from autotune.compatibility import conflict
from autotune.hardware import Hardware, detect_hardware
from autotune.knobs import Precision
from autotune.samplers import OptunaSampler, SamplerKind
from autotune.search_space import SearchSpace
from autotune.software import Software
from autotune.space_file import load_search_space
from autotune.strategy import Strategy
from autotune.trial import Failure, FailureKind, Trial, TrialState
from autotune.workload import Method, Workload

SOFTWARE = Software(versions={}, has_liger=True, has_compiler=True)


def _space(method: Method, tiny: Workload, hardware: Hardware) -> SearchSpace:
    return load_search_space("full", replace(tiny, method=method), hardware, SOFTWARE)


def _is_possible_on_a_cpu(strategy: Strategy, method: Method) -> bool:
    """The rules again, in the words of the libraries that would refuse."""
    is_lora = method is not Method.FULL
    return (
        not strategy.fused_kernels
        and strategy.offload_optimizer == "none"
        and 8 % (2 * strategy.micro_batch_size) == 0
        and (strategy.lora_rank > 0) == is_lora
        and not (strategy.optimizer == "adafactor" and strategy.zero_stage)
        and not (method is Method.QLORA and strategy.zero_stage == 3)
        and not (method is Method.QLORA and strategy.precision == "fp32")
        and not (strategy.master_weights == "bf16" and strategy.precision != "bf16")
        and not (strategy.master_weights == "bf16" and strategy.zero_stage == 0)
    )


@pytest.mark.parametrize("method", list(Method))
def test_the_full_space_on_a_cpu_holds_possible_strategies_only(
    method: Method, tiny: Workload, cpu_hardware: Hardware
) -> None:
    strategies = list(_space(method, tiny, cpu_hardware).strategies())
    assert len(strategies) > 50
    assert all(_is_possible_on_a_cpu(strategy, method) for strategy in strategies)


@pytest.mark.parametrize("method", list(Method))
@pytest.mark.parametrize("kind", [kind for kind in SamplerKind if kind is not SamplerKind.GP])
def test_no_sampler_proposes_what_is_impossible(
    kind: SamplerKind, method: Method, tiny: Workload, cpu_hardware: Hardware
) -> None:
    space = _space(method, tiny, cpu_hardware)
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
    fp16 = Strategy(precision=Precision.FP16)
    unable = replace(cpu_hardware, supports_fp16=False)
    assert conflict(fp16, tiny, cpu_hardware, SOFTWARE) is None
    assert "AVX512-FP16" in (conflict(fp16, tiny, unable, SOFTWARE) or "")
    assert {s.precision for s in _space(Method.FULL, tiny, unable).strategies()} == {
        Precision.BF16,
        Precision.FP32,
    }


@pytest.mark.slow
def test_fp16_is_proposed_only_where_deepspeed_takes_it() -> None:
    import torch

    if detect_hardware().supports_fp16:
        assert torch.ops.mkldnn._is_mkldnn_fp16_supported()
