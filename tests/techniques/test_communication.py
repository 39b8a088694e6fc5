"""Buckets, overlap and ZeRO++: collectives of real engines are counted, the loss stays."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from communication_facts import communication_facts
from two_ranks import Facts

from autotune.errors import ConfigError
from autotune.machine.hardware import DeviceType, Hardware
from autotune.machine.software import Software
from autotune.question.workload import Workload, load_model_shape
from autotune.space.compatibility import conflict
from autotune.space.deepspeed_config import deepspeed_config
from autotune.space.strategy import Strategy

SMALL_BUCKET = 1_000_000
SIZES = {"hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 1, "head_dim": 128}
"""Weights that ZeRO-3 divides: it leaves those of up to 100,000 elements whole."""
CASES: dict[str, dict[str, Any]] = {
    "plain": {"zero_stage": 0},
    **{
        f"zero{stage}-{name}": {"zero_stage": stage} | knobs
        for stage in (1, 2, 3)
        for name, knobs in {
            "default": {},
            "small": {"reduce_bucket_size": SMALL_BUCKET},
            "no-overlap": {"overlap_comm": False},
        }.items()
    },
    # The last, for DeepSpeed makes its groups once in a process.
    "hierarchical": {"zero_stage": 3, "zero_hpz_partition_size": 2},
}


@pytest.fixture(scope="module")
def facts(tiny: Workload, tmp_path_factory: pytest.TempPathFactory) -> Facts:
    """What was seen in each of `CASES`."""
    folder = tmp_path_factory.mktemp("communication")
    config = dict(load_model_shape("tiny").config) | SIZES
    (folder / "config.json").write_text(json.dumps(config))
    return communication_facts(folder, replace(tiny, model=load_model_shape(str(folder))), CASES)


@pytest.mark.slow
class TestEngines:
    @pytest.mark.parametrize("case", [case for case in CASES if case != "plain"])
    def test_the_loss_stays_as_it_is(self, facts: Facts, case: str) -> None:
        assert len(facts["plain"]["losses"]) == 5
        assert facts[case]["losses"] == pytest.approx(facts["plain"]["losses"], rel=1e-5)

    @pytest.mark.parametrize("zero_stage", [1, 2, 3])
    def test_smaller_buckets_send_more_often(self, facts: Facts, zero_stage: int) -> None:
        default = sum(facts[f"zero{zero_stage}-default"]["sent"].values())
        small = sum(facts[f"zero{zero_stage}-small"]["sent"].values())
        assert small > default

    @pytest.mark.parametrize("zero_stage", [1, 3])
    def test_a_bucket_is_as_large_as_asked(self, facts: Facts, zero_stage: int) -> None:
        (buffers,) = facts[f"zero{zero_stage}-small"]["buffers"]
        assert set(buffers) == {SMALL_BUCKET}

    def test_overlap_takes_a_second_bucket(self, facts: Facts) -> None:
        # ZeRO-2 does so too, but lets both go at the end of backward; ZeRO-3 has one.
        (with_overlap,) = facts["zero1-default"]["buffers"]
        (without,) = facts["zero1-no-overlap"]["buffers"]
        assert (len(with_overlap), len(without)) == (2, 1)

    @pytest.mark.parametrize("zero_stage", [1, 2, 3])
    def test_the_engine_overlaps_where_asked(self, facts: Facts, zero_stage: int) -> None:
        assert facts[f"zero{zero_stage}-default"]["overlaps"]
        assert not facts[f"zero{zero_stage}-no-overlap"]["overlaps"]

    def test_hierarchical_partition_keeps_a_second_copy_of_the_weights(self, facts: Facts) -> None:
        assert facts["zero3-default"]["second_copy_elements"] == 0
        case = facts["hierarchical"]
        # Half of the weights on each of the two ranks that hold a whole copy.
        assert case["second_copy_elements"] >= case["divided_elements"] / 2 > 0


class TestRules:
    SOFTWARE = Software(versions={}, has_compiler=True, has_cuda_toolkit=True)

    @pytest.fixture
    def gpus(self, cpu_hardware: Hardware) -> Hardware:
        return replace(cpu_hardware, device_type=DeviceType.CUDA, num_devices=4)

    def _words(self, workload: Workload, hardware: Hardware, **knobs: Any) -> str:
        strategy = Strategy.from_dict({"zero_stage": 3} | knobs)
        return conflict(strategy, workload, hardware, self.SOFTWARE) or ""

    @pytest.mark.parametrize("knob", ["zero_quantized_weights", "zero_quantized_gradients"])
    def test_quantized_communication_is_refused_on_a_cpu(
        self, tiny: Workload, cpu_hardware: Hardware, knob: str
    ) -> None:
        assert knob in self._words(tiny, cpu_hardware, **{knob: True})

    def test_quantized_weights_need_a_gpu_the_toolkit_and_whole_pieces(
        self, tiny: Workload, gpus: Hardware
    ) -> None:
        strategy = Strategy(zero_stage=3, zero_quantized_weights=True)
        assert conflict(strategy, tiny, gpus, self.SOFTWARE) is None
        bare = replace(self.SOFTWARE, has_cuda_toolkit=False)
        assert "nvcc" in (conflict(strategy, tiny, gpus, bare) or "")
        odd = replace(tiny, model=replace(tiny.model, vocab_size=511, embedding_size=97))
        assert "multiples of 8" in (conflict(strategy, odd, gpus, self.SOFTWARE) or "")

    def test_quantized_gradients_are_refused_within_one_host(
        self, tiny: Workload, gpus: Hardware
    ) -> None:
        assert "several hosts" in self._words(tiny, gpus, zero_quantized_gradients=True)
        two_hosts = replace(gpus, num_nodes=2)
        assert self._words(tiny, two_hosts, zero_quantized_gradients=True) == ""

    @pytest.mark.parametrize(
        "knobs",
        [
            {"overlap_comm": False},
            {"zero_quantized_weights": True},
            {"zero_quantized_gradients": True},
        ],
        ids=str,
    )
    def test_a_single_rank_has_nothing_to_send(
        self, tiny: Workload, gpus: Hardware, knobs: dict[str, bool]
    ) -> None:
        one = replace(gpus, num_devices=1)
        assert "needs two ranks or more" in self._words(tiny, one, **knobs)

    def test_the_hierarchical_partition_divides_the_ranks(
        self, tiny: Workload, gpus: Hardware
    ) -> None:
        assert not self._words(tiny, gpus, zero_hpz_partition_size=2)
        assert "does not divide the 4 ranks" in self._words(tiny, gpus, zero_hpz_partition_size=3)
        assert "does not divide" in self._words(tiny, gpus, zero_hpz_partition_size=8)

    def test_a_bucket_that_holds_all_gradients_is_the_default_again(
        self, tiny: Workload, cpu_hardware: Hardware
    ) -> None:
        assert "does the same" in self._words(tiny, cpu_hardware, reduce_bucket_size=10**8)
        assert not self._words(tiny, cpu_hardware, reduce_bucket_size=10**5)

    @pytest.mark.parametrize(
        ("knobs", "words"),
        [
            ({"overlap_comm": False}, "overlap_comm false needs zero_stage 1"),
            ({"reduce_bucket_size": 1000}, "reduce_bucket_size 1,000 needs zero_stage 1"),
            ({"zero_hpz_partition_size": 2, "zero_stage": 2}, "needs zero_stage 3"),
            (
                {"zero_hpz_partition_size": 2, "zero_stage": 3, "offload_param": "cpu"},
                "needs offload_param none",
            ),
            (
                {"zero_hpz_partition_size": 2, "zero_stage": 3, "tensor_parallel_size": 2},
                "tensor_parallel_size 2 cannot be combined with ZeRO++",
            ),
        ],
        ids=str,
    )
    def test_what_would_change_nothing_or_go_wrong_is_refused(
        self, knobs: dict[str, Any], words: str
    ) -> None:
        with pytest.raises(ConfigError, match=words):
            Strategy.from_dict(knobs)


def test_zeropp_is_in_the_json(tiny: Workload) -> None:
    strategy = Strategy(zero_stage=3, zero_quantized_weights=True, zero_hpz_partition_size=2)
    config = deepspeed_config(tiny, strategy, num_devices=4, device_type=DeviceType.CUDA)
    zero = config["zero_optimization"]
    assert zero["zero_quantized_weights"] is True
    assert zero["zero_hpz_partition_size"] == 2
    assert "zero_quantized_gradients" not in zero
