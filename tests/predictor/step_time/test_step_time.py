"""Step time and each knob: which way it moves, and by how much where that is arithmetic."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from autotune.machine.hardware import DEVICE_KINDS, DeviceType, Hardware
from autotune.predictor import AnalyticPredictor
from autotune.predictor.memory.precision import group_slowdowns
from autotune.predictor.memory.sharding import ShardModel
from autotune.predictor.memory.states import StatesModel
from autotune.predictor.step_time.communication import CommunicationModel
from autotune.predictor.step_time.launch_overhead import LaunchOverheadModel
from autotune.predictor.step_time.operation_counts import OperationCounts, micro_step_counts
from autotune.question.workload import Method, Workload, load_model_shape
from autotune.space.strategy import Strategy


def hardware(kind: str = "H100-80GB", num_devices: int = 1) -> Hardware:
    line = DEVICE_KINDS[kind]
    return Hardware(
        device_type=DeviceType.CUDA,
        device_kind=kind,
        num_devices=num_devices,
        device_memory_bytes=line.memory_bytes,
        host_memory_bytes=2**40,
        flops_per_s=line.flops_per_s,
        memory_bytes_per_s=line.memory_bytes_per_s,
        supports_bf16=line.supports_bf16,
    )


def workload(model: str = "7B", *, method: Method = Method.FULL, batch: int = 64) -> Workload:
    shape = load_model_shape(model)
    return Workload(model=shape, seq_len=1024, global_batch_size=batch, method=method)


def alike_layers() -> Workload:
    """Next to no embedding and head, so that every stage of a pipeline has as many layers."""
    return replace(workload(), model=replace(load_model_shape("7B"), vocab_size=64))


def strategy(**knobs: Any) -> Strategy:
    return Strategy.from_dict({"zero_stage": 1, "micro_batch_size": 8} | knobs)


def step_s(
    model: str = "7B",
    *,
    num_devices: int = 1,
    method: Method = Method.FULL,
    batch: int = 64,
    kind: str = "H100-80GB",
    **knobs: Any,
) -> float:
    predictor = AnalyticPredictor(
        workload(model, method=method, batch=batch), hardware(kind, num_devices)
    )
    return predictor.predict(strategy(**knobs)).step_time_s


def work(model: str = "7B", *, method: Method = Method.FULL, **knobs: Any) -> OperationCounts:
    question, chosen = workload(model, method=method), strategy(**knobs)
    shard = ShardModel(question.model).of(chosen, 1)[0]
    adapters = question.num_trainable_parameters(chosen.lora_rank) if chosen.lora_rank else 0
    return micro_step_counts(question, hardware(), chosen, shard, adapters)


def link_s(*, num_devices: int = 4, **knobs: Any) -> float:
    """Communication of one micro-step and of a step."""
    question, machine, chosen = workload(), hardware(num_devices=num_devices), strategy(**knobs)
    states = StatesModel(question, machine)
    links, shard = CommunicationModel(question, machine, states), states.shards(chosen)[0]
    return links.micro_step_s(chosen, shard) + links.step_s(chosen, shard)


LORA = {"lora_rank": 16}


def test_checkpointing_a_part_repeats_the_products_of_that_part_alone() -> None:
    shape = load_model_shape("7B")
    plain, whole = work(), work(checkpoint_interval=1)
    attention, mlp = (
        work(checkpoint_interval=1, checkpoint_scope=scope) for scope in ("attention", "mlp")
    )
    of_attention = sum(i * o for i, o in shape.attention_linears.values())

    extra = attention.matmul_flops - plain.matmul_flops
    assert extra == 2 * shape.num_hidden_layers * of_attention
    assert extra + mlp.matmul_flops - plain.matmul_flops == (
        whole.matmul_flops - plain.matmul_flops
    )
    assert mlp.attention_flops == plain.attention_flops < attention.attention_flops


def test_tiles_compute_forward_once_more() -> None:
    shape = load_model_shape("7B")
    plain = work()
    mlp = sum(i * o for i, o in shape.mlp_linears.values()) * shape.num_hidden_layers

    assert work(mlp_tiles=4).matmul_flops - plain.matmul_flops == 2 * mlp
    assert work(mlp_tiles=8).matmul_flops == work(mlp_tiles=4).matmul_flops
    assert work(mlp_tiles=8).num_kernels > work(mlp_tiles=4).num_kernels
    head = shape.vocab_size * shape.hidden_size
    assert work(loss_tiles=4).matmul_flops - plain.matmul_flops == 2 * head


def test_tensor_parallelism_divides_products_but_not_norms() -> None:
    whole, half = work(), work(tensor_parallel_size=2)

    assert half.matmul_flops == whole.matmul_flops / 2
    assert half.attention_flops == whole.attention_flops / 2
    assert whole.traffic_bytes / 2 < half.traffic_bytes < whole.traffic_bytes


def test_compiled_layers_move_what_fused_ones_do_and_the_logits_besides() -> None:
    plain, fused, compiled = work(), work(fused_kernels=True), work(torch_compile=True)

    assert fused.traffic_bytes < compiled.traffic_bytes < plain.traffic_bytes
    vocabulary = load_model_shape("7B").vocab_size
    assert compiled.traffic_bytes - fused.traffic_bytes == pytest.approx((40 - 8) * vocabulary)


def test_eager_attention_computes_all_pairs_and_moves_their_scores() -> None:
    sdpa, eager = work(), work(attention="eager")

    assert eager.attention_flops == 0
    assert eager.matmul_flops - sdpa.matmul_flops == pytest.approx(12 / 7 * sdpa.attention_flops)
    shape = load_model_shape("7B")
    scores = shape.num_attention_heads * 1024 * shape.num_hidden_layers
    assert eager.traffic_bytes - sdpa.traffic_bytes == pytest.approx((24 + 34) * scores)
    assert work(attention="flash_attention_2") == sdpa


def test_fp8_halves_products_and_adds_conversions_that_compilation_fuses() -> None:
    plain, quarter = work(torch_compile=True), work(mlp_precision="fp8", torch_compile=True)
    shape = load_model_shape("7B")
    mlp = sum(i * o for i, o in shape.mlp_linears.values()) * shape.num_hidden_layers

    assert plain.matmul_flops - quarter.matmul_flops == 6 * mlp / 2
    assert quarter.attention_flops == plain.attention_flops
    assert quarter.traffic_bytes > plain.traffic_bytes
    assert quarter.fixed_bytes > 0
    eager = work(mlp_precision="fp8")
    assert eager.fixed_bytes > quarter.fixed_bytes


@pytest.mark.parametrize(
    ("kind", "without", "with_tf32"),
    [("H100-80GB", 15.0, 2.0), ("RTX4090", 2.0, 2.0), ("V100-32GB", 8.0, 8.0)],
)
def test_fp32_products_are_slower_and_tf32_helps_where_the_device_has_it(
    kind: str, without: float, with_tf32: float
) -> None:
    for tf32, slowdown in ((False, without), (True, with_tf32)):
        slow = group_slowdowns(strategy(precision="fp32", tf32=tf32), hardware(kind))
        assert set(slow.values()) == {slowdown}


def test_only_the_products_of_a_group_in_fp32_are_slow() -> None:
    shape = load_model_shape("7B")
    plain, wide = work(), work(attention_precision="fp32", tf32=True)
    attention = sum(i * o for i, o in shape.attention_linears.values()) * shape.num_hidden_layers

    assert wide.matmul_flops - plain.matmul_flops == 6 * attention


def test_adapters_move_as_much_as_pointwise_kernels_do() -> None:
    lora = work(method=Method.LORA, fused_kernels=True, **LORA)

    assert lora.stream_bytes > lora.traffic_bytes / 2
    assert work().stream_bytes == 0
    narrow = work(method=Method.LORA, fused_kernels=True, **LORA, lora_targets="attention")
    assert 0 < narrow.stream_bytes < lora.stream_bytes / 2


def test_4_bit_weights_are_unpacked_in_every_pass() -> None:
    plain, again = (
        work(method=Method.QLORA, **LORA, checkpoint_interval=n).fixed_bytes for n in (0, 1)
    )

    assert again == plain * 3 / 2


class TestHost:
    def seconds(
        self, *, method: Method = Method.FULL, accumulation: int = 1, **knobs: Any
    ) -> float:
        model, chosen = LaunchOverheadModel(workload(method=method), hardware()), strategy(**knobs)
        return accumulation * model.micro_step_s(chosen, 32) + model.step_s(chosen, 32)

    def test_adapters_and_4_bit_weights_take_launches_of_their_own(self) -> None:
        plain = self.seconds()
        lora = self.seconds(method=Method.LORA, **LORA)
        qlora = self.seconds(method=Method.QLORA, **LORA)

        assert plain < lora < 2 * plain < qlora < 4 * plain

    def test_fewer_adapters_take_fewer_launches(self) -> None:
        all_linear = self.seconds(method=Method.LORA, **LORA)

        assert self.seconds(method=Method.LORA, **LORA, lora_targets="q_proj") < all_linear

    def test_zero3_gathers_adapters_module_by_module(self) -> None:
        plain, lora = self.seconds(zero_stage=3), self.seconds(zero_stage=3, **LORA)

        assert lora > 2 * plain

    def test_the_optimizer_of_adapters_is_launched_once_a_step(self) -> None:
        once, eight = (self.seconds(method=Method.LORA, **LORA, accumulation=n) for n in (1, 8))

        assert eight < 8 * once

    def test_the_cpu_launches_nothing(self, cpu_hardware: Hardware) -> None:
        model = LaunchOverheadModel(workload(), cpu_hardware)

        assert model.micro_step_s(strategy(), 32) == 0.0
        assert model.step_s(strategy(), 32) == 0.0


class TestLinks:
    def test_one_rank_has_nobody_to_talk_to(self) -> None:
        for stage in (0, 1, 2, 3):
            assert link_s(num_devices=1, zero_stage=stage) == 0

    def test_what_does_not_overlap_is_exposed(self) -> None:
        for stage in (1, 2, 3):
            assert link_s(zero_stage=stage, overlap_comm=False) > link_s(zero_stage=stage)

    def test_small_buckets_start_more_often(self) -> None:
        assert link_s(zero_stage=2, reduce_bucket_size=1_000_000) > link_s(zero_stage=2)

    def test_each_part_of_zeropp_saves_its_part_of_the_volume(self) -> None:
        knobs: dict[str, Any] = {"zero_stage": 3, "num_devices": 8}
        plain = link_s(**knobs)
        # Gathered twice and scattered once: thirds of the volume.
        third = plain / 3
        assert link_s(**knobs, zero_quantized_weights=True) == pytest.approx(plain - third, 0.01)
        assert link_s(**knobs, zero_quantized_gradients=True) == pytest.approx(
            plain - 0.75 * third, 0.01
        )
        # The second copy's gather is over 2 of 8 ranks: 1/2 instead of 7/8 of the bytes.
        assert link_s(**knobs, zero_hpz_partition_size=2) == pytest.approx(
            plain - third * (1 - (1 / 2) / (7 / 8)), 0.01
        )

    def test_tensor_parallelism_talks_in_every_layer_and_sequence_parallelism_less(self) -> None:
        knobs: dict[str, Any] = {"zero_stage": 0}
        tensor = link_s(**knobs, tensor_parallel_size=4)
        # With adapters, whose gradients are next to nothing: Ulysses has them travel in fp32.
        sequence = link_s(**knobs, **LORA, sequence_parallel_size=4)
        without = link_s(**knobs, **LORA)

        assert tensor - 0 > 2 * (sequence - without) > 0

    def test_only_zero3_scatters_gradients(self) -> None:
        once, twice = (link_s(zero_stage=stage, overlap_comm=False) for stage in (3, 2))
        # Three passes each: scattered and gathered twice, summed and gathered once.
        assert once == pytest.approx(twice, 0.01)

    def test_with_ulysses_gradients_travel_in_fp32(self) -> None:
        half, full = (
            link_s(zero_stage=0, num_devices=2, sequence_parallel_size=size) for size in (1, 2)
        )
        assert full > 2 * half

    def test_recomputation_repeats_the_collectives_of_forward(self) -> None:
        for degree in ("tensor_parallel_size", "sequence_parallel_size"):
            knobs: dict[str, Any] = {"zero_stage": 0, degree: 2}
            assert link_s(**knobs, checkpoint_interval=1) > link_s(**knobs)

    def test_a_group_that_spans_hosts_talks_over_the_network(self) -> None:
        question, chosen = workload(), strategy(zero_stage=2)
        near = hardware(num_devices=16)
        seconds = []
        for machine in (near, replace(near, num_nodes=2), replace(near, num_nodes=16)):
            states = StatesModel(question, machine)
            links, shard = CommunicationModel(question, machine, states), states.shards(chosen)[0]
            seconds.append(links.micro_step_s(chosen, shard))

        # Eight ports side by side, then one.
        assert seconds == sorted(seconds)
        assert seconds[2] > 4 * seconds[1]

    def test_tensor_parallelism_within_a_host_does_not_see_the_network(self) -> None:
        near = hardware(num_devices=16)
        question = workload()
        chosen = strategy(zero_stage=0, tensor_parallel_size=8)
        near_s, far_s = (
            CommunicationModel(question, machine, states).micro_step_s(
                chosen, states.shards(chosen)[0]
            )
            for machine in (near, replace(near, num_nodes=2))
            for states in [StatesModel(question, machine)]
        )

        assert near_s == far_s

    def test_pcie_is_slower_than_nvlink(self) -> None:
        fast, slow = (
            step_s("1.1B", num_devices=8, kind=kind) for kind in ("H100-80GB", "RTX4090")
        )

        assert slow > fast


class TestStep:
    def test_m_micro_batches_pass_p_like_stages_in_the_time_of_m_plus_p_minus_1(self) -> None:
        knobs: dict[str, Any] = {"zero_stage": 0, "pipeline_parallel_size": 4}
        predictor = AnalyticPredictor(alike_layers(), hardware(num_devices=4))
        for size, num in ((16, 4), (8, 8), (2, 32)):
            chosen = strategy(**knobs, micro_batch_size=size)
            assert predictor.explain(chosen)[1].num_micro_steps == pytest.approx(num + 3, rel=0.01)

    def test_a_pipeline_of_unlike_stages_fills_in_the_time_of_its_stages(self) -> None:
        knobs: dict[str, Any] = {"zero_stage": 0, "pipeline_parallel_size": 4}
        predictor = AnalyticPredictor(workload(), hardware(num_devices=4))
        num = predictor.explain(strategy(**knobs))[1].num_micro_steps

        assert 8 + 1 < num < 8 + 2.9

    def test_parallel_ranks_are_faster_than_one_and_slower_than_perfect(self) -> None:
        alone = step_s(zero_stage=0)
        for degree in ("tensor", "pipeline", "sequence"):
            four = step_s(zero_stage=0, num_devices=4, **{f"{degree}_parallel_size": 4})
            assert alone / 4 < four < alone

    def test_offloading_further_away_takes_longer(self) -> None:
        knobs: dict[str, Any] = {"zero_stage": 3, "num_devices": 2}
        times = [
            step_s(**knobs, **offload)
            for offload in (
                {},
                {"offload_optimizer": "cpu", "offload_ratio": 0.5},
                {"offload_optimizer": "cpu"},
                {"offload_optimizer": "nvme"},
                {"offload_optimizer": "nvme", "offload_param": "cpu"},
                {"offload_optimizer": "nvme", "offload_param": "nvme"},
            )
        ]

        assert times == sorted(times)
        assert len(set(times)) == len(times)

    def test_checkpoints_go_to_the_host_and_back(self) -> None:
        here = step_s(checkpoint_interval=1)

        assert step_s(checkpoint_interval=1, offload_checkpoints="cpu") > here

    def test_stage_2_copies_gradients_to_the_host_in_every_micro_step(self) -> None:
        knobs: dict[str, Any] = {"model": "1.1B", "offload_optimizer": "cpu", "batch": 32}
        first, second = (step_s(zero_stage=n, **knobs) for n in (1, 2))
        moved = 2 * load_model_shape("1.1B").num_parameters

        # Four micro-steps: four down, three up again.
        assert second - first == pytest.approx(7 * moved / 25e9, rel=1e-6)
        alone = {"batch": 8}
        assert step_s(zero_stage=2, **knobs | alone) == pytest.approx(
            step_s(zero_stage=1, **knobs | alone)
        )

    def test_muon_multiplies_matrices_in_its_step(self) -> None:
        assert step_s(optimizer="muon") > step_s(optimizer="sgd")

    def test_adapters_and_4_bit_weights_are_slower_than_their_operations_say(self) -> None:
        # One H100: 13B LoRA at micro-batch 4 with checkpoints and Liger 5,898 tokens/s, 7B QLoRA
        # 6,109 (`results/h100-trials`).
        knobs: dict[str, Any] = {"micro_batch_size": 4, "checkpoint_interval": 1, **LORA}
        knobs["fused_kernels"] = True
        lora = step_s("13B", method=Method.LORA, batch=16, **knobs)
        qlora = step_s("7B", method=Method.QLORA, batch=8, **knobs)

        assert 16 * 1024 / lora == pytest.approx(5898, rel=0.15)
        assert 8 * 1024 / qlora == pytest.approx(6109, rel=0.15)

    def test_tiles_take_time(self) -> None:
        for knob in ("mlp_tiles", "loss_tiles"):
            assert step_s(**{knob: 4}) > step_s()

    def test_no_batch_that_divides_is_needed(self) -> None:
        machine = replace(hardware(), num_devices=3)
        predictor = AnalyticPredictor(workload(), machine)

        assert predictor.predict(strategy(pipeline_parallel_size=2)).step_time_s > 0


class TestParts:
    def parts(self, *, num_devices: int = 1, batch: int = 64, **knobs: Any) -> dict[str, float]:
        predictor = AnalyticPredictor(workload(batch=batch), hardware(num_devices=num_devices))
        prediction = predictor.predict(strategy(**knobs))
        assert sum(prediction.step_parts_s.values()) == pytest.approx(prediction.step_time_s)
        assert min(prediction.step_parts_s.values()) > 0
        return dict(prediction.step_parts_s)

    def test_one_rank_computes_forward_twice_as_fast_as_backward_and_updates(self) -> None:
        parts = self.parts()

        assert set(parts) == {"forward", "backward", "optimizer"}
        assert parts["backward"] == pytest.approx(2 * parts["forward"], rel=0.1)

    def test_whole_checkpoints_repeat_forward_and_leave_the_rest(self) -> None:
        plain, again = self.parts(), self.parts(checkpoint_interval=1)

        repeated = again.pop("recomputation")
        assert again == pytest.approx(plain)
        assert 0.9 * plain["forward"] < repeated < plain["forward"]

    def test_ranks_communicate_and_offloading_moves(self) -> None:
        assert "communication" in self.parts(num_devices=8, zero_stage=3)
        offloaded = self.parts(num_devices=8, zero_stage=3, offload_optimizer="cpu")
        assert offloaded["host transfer"] > 0
        kept = self.parts(checkpoint_interval=1, offload_checkpoints="cpu")
        assert kept["host transfer"] > 0

    def test_a_pipeline_of_p_stages_and_m_micro_batches_idles_for_p_minus_1_of_them(self) -> None:
        knobs: dict[str, Any] = {"zero_stage": 0, "pipeline_parallel_size": 4}
        predictor = AnalyticPredictor(alike_layers(), hardware(num_devices=4))
        parts = dict(predictor.predict(strategy(**knobs)).step_parts_s)
        bubble = parts.pop("pipeline bubble")
        once = parts.pop("optimizer")

        # 64 samples in 8 micro-batches; what is left besides is theirs, but for the gradients'
        # exchange, of which one rank a stage has none.
        assert bubble == pytest.approx(3 / 8 * sum(parts.values()), rel=0.02)
        assert once > 0


class TestFusedLoss:
    def test_a_wide_vocabulary_is_cut_into_pieces_that_each_read_the_whole_head(self) -> None:
        narrow = work(fused_kernels=True)
        shape = replace(load_model_shape("7B"), vocab_size=256_000)
        wide = replace(workload(), model=shape)
        shard = ShardModel(shape).of(strategy(fused_kernels=True), 1)[0]
        of_wide = micro_step_counts(wide, hardware(), strategy(fused_kernels=True), shard, 0)

        assert narrow.loss_pieces == 8
        assert of_wide.loss_pieces == 63
        assert of_wide.loss_piece_bytes == 4 * 2 * 256_000 * 4096

    def test_logits_that_are_kept_whole_have_no_pieces(self) -> None:
        assert work().loss_pieces == 0

    def test_small_pieces_take_longer_than_their_products(self) -> None:
        shape = replace(load_model_shape("1.1B"), vocab_size=256_000)
        question = Workload(model=shape, seq_len=1024, global_batch_size=8)
        predictor = AnalyticPredictor(question, hardware())
        chosen = strategy(fused_kernels=True)
        parts = predictor.explain(chosen)[1]
        read_s = 128 * 4 * 2 * 256_000 * 2048 / (3.35e12 * 0.9)

        # 8,192 tokens in pieces of 128, 64 of them.
        assert parts.traffic_s > read_s / 2 - 6 * 256_000 * 2048 * 8192 / (989e12 * 0.7)
