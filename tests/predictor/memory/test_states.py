from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from autotune.machine.hardware import DEVICE_KINDS, DeviceType, Hardware
from autotune.predictor.memory.held_states import States
from autotune.predictor.memory.states import StatesModel
from autotune.question.workload import Workload, load_model_shape
from autotune.space.deepspeed_config import deepspeed_config
from autotune.space.strategy import Strategy

H100 = DEVICE_KINDS["H100-80GB"]
ONE = Hardware(
    device_type=DeviceType.CUDA,
    device_kind=H100.name,
    num_devices=1,
    device_memory_bytes=H100.memory_bytes,
    host_memory_bytes=2**38,
    flops_per_s=H100.flops_per_s,
    memory_bytes_per_s=H100.memory_bytes_per_s,
)


def states(
    model: str = "7B", *, num_devices: int = 1, batch: int = 64, stage: int = 0, **knobs: Any
) -> States:
    """Of one stage of the pipeline; `knobs` as in a search space."""
    workload = Workload(model=load_model_shape(model), seq_len=512, global_batch_size=batch)
    model_ = StatesModel(workload, replace(ONE, num_devices=num_devices))
    strategy = Strategy.from_dict(knobs)
    return model_.of(strategy, model_.shards(strategy)[stage])


def test_the_bucket_is_the_one_that_deepspeed_is_given(cpu_hardware: Hardware) -> None:
    for model in ("125M", "1.1B"):
        workload = Workload(model=load_model_shape(model), seq_len=64, global_batch_size=4)
        strategy = Strategy(zero_stage=2)
        config = deepspeed_config(workload, strategy, num_devices=2, device_type=DeviceType.CPU)
        bucket = config["zero_optimization"]["reduce_bucket_size"]

        states = StatesModel(workload, cpu_hardware).of(strategy)
        # Two of them where communication overlaps with backward.
        assert states.buckets == 2 * 2 * bucket
        assert config["zero_optimization"]["overlap_comm"]


def test_stage_1_holds_all_gradients_between_micro_steps_and_stage_2_its_part(
    cpu_hardware: Hardware,
) -> None:
    workload = Workload(model=load_model_shape("125M"), seq_len=64, global_batch_size=8)
    model = StatesModel(workload, cpu_hardware)
    whole = 2 * workload.model.num_parameters

    assert model.of(Strategy(zero_stage=1)).accumulated_gradients == whole
    assert model.of(Strategy(zero_stage=2)).accumulated_gradients == whole // 2


def test_tensor_parallelism_divides_linear_weights_and_leaves_norms_and_the_embedding() -> None:
    shape = load_model_shape("7B")
    whole, quarter = (states(num_devices=4, tensor_parallel_size=n) for n in (1, 4))

    undivided = shape.num_parameters - shape.lm_head_parameters
    undivided -= shape.num_hidden_layers * shape.linear_parameters_per_layer
    assert quarter.weights - 2 * undivided == (whole.weights - 2 * undivided) / 4
    assert quarter.first_gradient == whole.first_gradient / 4


def test_a_tied_embedding_is_divided_with_the_head() -> None:
    whole, half = (states("125M", num_devices=2, tensor_parallel_size=n) for n in (1, 2))
    shape = load_model_shape("125M")
    embedding = 2 * shape.vocab_size * shape.hidden_size

    assert whole.weights - half.weights > embedding / 2


def test_zero_divides_over_data_and_sequence_but_not_over_tensor() -> None:
    knobs: dict[str, Any] = {"zero_stage": 1, "num_devices": 4}
    data, sequence, tensor = (
        states(**knobs),
        states(**knobs, sequence_parallel_size=4),
        states(**knobs, tensor_parallel_size=4),
    )

    assert sequence == data
    # A quarter of the linear layers, and all else whole.
    assert tensor.master_weights > data.master_weights


def test_sequence_parallelism_divides_no_weights_of_its_own() -> None:
    alone, divided = (states(num_devices=4, sequence_parallel_size=n) for n in (1, 4))

    assert divided == alone


def test_a_pipeline_divides_layers_and_leaves_embedding_and_head_at_its_ends() -> None:
    whole = states(num_devices=4)
    stages = [states(num_devices=4, pipeline_parallel_size=4, stage=n) for n in range(4)]

    assert sum(stage.weights for stage in stages) == whole.weights
    assert stages[1].weights < whole.weights / 3
    assert stages[3].first_gradient == whole.first_gradient


def test_stages_at_both_ends_hold_a_tied_embedding() -> None:
    whole = states("125M", num_devices=2)
    first, last = (
        states("125M", num_devices=2, pipeline_parallel_size=2, stage=n) for n in range(2)
    )
    shape = load_model_shape("125M")

    assert first.weights + last.weights - whole.weights == 2 * shape.embedding_parameters


def test_a_pipeline_in_bf16_without_zero_accumulates_all_gradients_from_the_start() -> None:
    stage = states(num_devices=4, pipeline_parallel_size=2)

    # The buffer of all of them, and the weights' own, which are cleared and kept.
    assert stage.accumulated_gradients == 2 * stage.weights
    assert stage.step_buffers == stage.accumulated_gradients + stage.master_weights
    # Masters and states are divided over the two ranks of each stage all the same.
    assert stage.master_weights == stage.weights
    assert stage.buckets == 0


@pytest.mark.parametrize(
    ("optimizer", "bytes_per_parameter"),
    [("adamw", 8.0), ("paged_adamw_8bit", 2 + 2 / 64), ("lion", 4.0), ("sgd", 4.0)],
)
def test_states_of_a_parameter_are_those_of_its_optimizer(
    optimizer: str, bytes_per_parameter: float
) -> None:
    held = states(zero_stage=1, optimizer=optimizer).optimizer_states

    assert held == pytest.approx(bytes_per_parameter * load_model_shape("7B").num_parameters)


def test_8_bit_states_keep_embeddings_in_32_bit_where_parameters_are_not_flattened() -> None:
    whole, flat = (states(zero_stage=n, optimizer="adamw_8bit") for n in (0, 1))
    embedding = load_model_shape("7B").embedding_parameters

    assert whole.optimizer_states - flat.optimizer_states == pytest.approx(
        2 * (4 - 1 - 1 / 64) * embedding
    )


def test_muon_keeps_one_momentum_of_16_bit_for_matrices_and_two_moments_for_the_rest() -> None:
    shape = load_model_shape("7B")
    matrices = shape.num_hidden_layers * shape.linear_parameters_per_layer
    rest = shape.num_parameters - matrices

    held = states(zero_stage=1, optimizer="muon")
    assert held.optimizer_states == pytest.approx(2 * matrices + 8 * rest)
    assert held.staged_states == 2 * matrices


@pytest.mark.parametrize("zero_stage", [1, 2])
@pytest.mark.parametrize(("precision", "element"), [("bf16", 2), ("fp32", 4)])
def test_muon_keeps_matrices_that_reach_into_a_partition_whole_and_stages_them(
    zero_stage: int, precision: str, element: int
) -> None:
    shape = load_model_shape("7B")
    matrices = shape.num_hidden_layers * shape.linear_parameters_per_layer
    rest = shape.num_parameters - matrices
    # By shape, the largest first: 64 of 11008 x 4096, 32 of 4096 x 11008, 128 of 4096 x 4096.
    # The border lies in the 72nd of them, 36,700,160 of whose elements are the first rank's.
    held = states(zero_stage=zero_stage, optimizer="muon", num_devices=2, precision=precision)
    border = 36_700_160
    assert held.staged_states == element * (matrices // 2 + border)
    assert held.optimizer_states == pytest.approx(
        element * (matrices / 2 + border) + 2 * 4 * rest / 2, rel=1e-6
    )


def test_a_ratio_leaves_the_rest_of_states_and_masters_on_the_device() -> None:
    knobs: dict[str, Any] = {"zero_stage": 3, "num_devices": 2}
    here = states(**knobs)
    half = states(**knobs, offload_optimizer="cpu", offload_ratio=0.5)
    away = states(**knobs, offload_optimizer="cpu")

    assert half.optimizer_states == pytest.approx(here.optimizer_states / 2)
    assert half.master_weights == pytest.approx(here.master_weights / 2)
    assert away.optimizer_states == away.master_weights == 0


def test_nothing_of_the_optimizer_is_on_the_device_where_it_is_on_nvme() -> None:
    away = states(zero_stage=3, num_devices=2, offload_optimizer="nvme")

    assert away.optimizer_states == away.master_weights == away.step_buffers == 0


@pytest.mark.parametrize("place", ["cpu", "nvme"])
def test_offloaded_weights_are_on_the_device_only_while_they_are_at_work(place: str) -> None:
    here, away = (states(zero_stage=3, num_devices=2, offload_param=p) for p in ("none", place))

    assert away.weights < here.weights / 1000
    assert 0 < away.gathered_weights <= here.gathered_weights


def test_from_nvme_nothing_is_read_ahead() -> None:
    cpu, nvme = (states(zero_stage=3, offload_param=place) for place in ("cpu", "nvme"))

    assert nvme.gathered_weights < cpu.gathered_weights


def test_a_second_copy_is_divided_over_fewer_ranks() -> None:
    plain, pair = (states(zero_stage=3, num_devices=8, zero_hpz_partition_size=n) for n in (1, 2))

    assert plain.second_weights == 0
    assert pair.second_weights == 4 * pair.weights


def test_buckets_are_as_large_as_asked_and_two_only_where_communication_overlaps() -> None:
    knobs: dict[str, Any] = {"zero_stage": 2, "num_devices": 2, "reduce_bucket_size": 1_000_000}

    assert states(**knobs).buckets == 2 * 2 * 1_000_000
    assert states(**knobs, overlap_comm=False).buckets == 2 * 1_000_000


def test_weights_of_a_group_take_its_own_precision() -> None:
    shape = load_model_shape("7B")
    plain, wide = states(zero_stage=1), states(zero_stage=1, embedding_precision="fp32")

    assert wide.weights - plain.weights == 2 * shape.embedding_parameters
    assert wide.master_weights == plain.master_weights


def test_without_zero_only_16_bit_weights_have_masters_beside_fp32_ones() -> None:
    shape = load_model_shape("7B")
    held = states(embedding_precision="fp32").master_weights

    assert held == pytest.approx(4 * (shape.num_parameters - shape.embedding_parameters))


def test_without_zero_gradients_of_fp16_are_in_fp32_when_they_are_unscaled() -> None:
    num = load_model_shape("7B").num_parameters
    for knobs in ({"precision": "fp16"}, {"mlp_precision": "fp16", "norm_precision": "fp32"}):
        held = states(**knobs)
        assert held.step_buffers == pytest.approx(4 * num)
        assert held.final_gradients == pytest.approx(2 * num, rel=1e-3)


def test_fp8_keeps_weights_as_they_are() -> None:
    assert states(zero_stage=1, mlp_precision="fp8") == states(zero_stage=1)


def test_a_pipeline_overlaps_nothing_and_has_one_bucket() -> None:
    knobs: dict[str, Any] = {"zero_stage": 1, "num_devices": 4, "precision": "fp32"}
    knobs["reduce_bucket_size"] = 1_000_000

    assert states(**knobs, pipeline_parallel_size=2).buckets == 4 * 1_000_000
    assert states(**knobs).buckets == 2 * 4 * 1_000_000


def test_layers_that_are_recomputed_together_stay_gathered_until_their_backward() -> None:
    layer = 2 * load_model_shape("13B").linear_parameters_per_layer

    def span(interval: int, **knobs: Any) -> int:
        asked: dict[str, Any] = {"zero_stage": 3, "num_devices": 4} | knobs
        return states("13B", checkpoint_interval=interval, **asked).span_weights

    assert [span(n) for n in (0, 1, 2, 8)] == [0, 0, 2 * layer, 8 * layer]
    assert span(8, num_devices=1) == span(8, zero_stage=2) == 0
    assert span(8, offload_param="cpu") == 8 * layer
