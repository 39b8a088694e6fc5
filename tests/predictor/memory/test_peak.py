"""Peak memory and each knob: which way it moves, and where."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from autotune.machine.hardware import DEVICE_KINDS, DeviceType, Hardware
from autotune.machine.hardware_spec import read_hardware
from autotune.predictor import AnalyticPredictor
from autotune.predictor.memory.peak import MemoryModel
from autotune.question.workload import Workload, load_model_shape
from autotune.space.strategy import Strategy
from autotune.trials.trial import Prediction

KIND = DEVICE_KINDS["H100-80GB"]


def h100(num_devices: int) -> Hardware:
    return Hardware(
        device_type=DeviceType.CUDA,
        device_kind=KIND.name,
        num_devices=num_devices,
        device_memory_bytes=KIND.memory_bytes,
        host_memory_bytes=2**40,
        flops_per_s=KIND.flops_per_s,
        memory_bytes_per_s=KIND.memory_bytes_per_s,
    )


def predict(
    model: str = "7B", *, num_devices: int = 4, batch: int = 64, seq_len: int = 2048, **knobs: Any
) -> Prediction:
    """Micro-batches of 16,384 tokens, so that activations decide the peak."""
    workload = Workload(model=load_model_shape(model), seq_len=seq_len, global_batch_size=batch)
    strategy = Strategy.from_dict({"zero_stage": 1, "micro_batch_size": 8} | knobs)
    return AnalyticPredictor(workload, h100(num_devices)).predict(strategy)


def peak(**knobs: Any) -> int:
    return predict(**knobs).peak_memory_bytes


@pytest.mark.parametrize("zero_stage", [0, 1, 2, 3])
@pytest.mark.parametrize(
    ("less", "more"),
    [
        ({"mlp_tiles": 2}, {"mlp_tiles": 1}),
        (
            {"mlp_tiles": 8, "checkpoint_interval": 1, "loss_tiles": 16},
            {"mlp_tiles": 2, "checkpoint_interval": 1, "loss_tiles": 16},
        ),
        (
            {"checkpoint_interval": 1, "checkpoint_scope": "attention"},
            {"checkpoint_interval": 0},
        ),
        (
            {"checkpoint_interval": 1, "checkpoint_scope": "mlp"},
            {"checkpoint_interval": 1, "checkpoint_scope": "attention"},
        ),
        ({"checkpoint_interval": 1}, {"checkpoint_interval": 1, "checkpoint_scope": "mlp"}),
        (
            {"checkpoint_interval": 1, "offload_checkpoints": "cpu"},
            {"checkpoint_interval": 1},
        ),
        ({"sequence_parallel_size": 2}, {}),
        ({}, {"attention": "eager"}),
    ],
)
def test_memory_falls_with(zero_stage: int, less: dict[str, Any], more: dict[str, Any]) -> None:
    assert peak(zero_stage=zero_stage, **less) < peak(zero_stage=zero_stage, **more)


@pytest.mark.parametrize("zero_stage", [0, 1, 2])
def test_memory_falls_with_compiled_layers_and_grows_with_a_group_in_fp32(zero_stage: int) -> None:
    plain = peak(zero_stage=zero_stage)

    assert peak(zero_stage=zero_stage, torch_compile=True) < plain
    assert peak(zero_stage=zero_stage, mlp_precision="fp32") > plain


@pytest.mark.parametrize("knob", ["mlp_tiles", "loss_tiles"])
@pytest.mark.parametrize("checkpoint_interval", [0, 1, 4])
@pytest.mark.parametrize("zero_stage", [0, 1, 2, 3])
def test_more_tiles_never_need_more_memory(
    knob: str, checkpoint_interval: int, zero_stage: int
) -> None:
    knobs = {"checkpoint_interval": checkpoint_interval, "zero_stage": zero_stage}
    peaks = [peak(**knobs, **{knob: num}) for num in (1, 2, 4, 8, 16)]

    assert peaks == sorted(peaks, reverse=True)


def test_loss_in_tiles_takes_the_logits_off_the_peak() -> None:
    knobs: dict[str, Any] = {"model": "1.1B", "checkpoint_interval": 1, "num_devices": 1}
    whole, tiled = (predict(**knobs, loss_tiles=n) for n in (1, 16))

    assert whole.moment == "loss"
    assert tiled.moment != "loss"


def test_tensor_parallelism_divides_nearly_all_of_a_large_model() -> None:
    knobs: dict[str, Any] = {"model": "70B", "num_devices": 8, "micro_batch_size": 1}
    whole, eighth = (peak(**knobs, zero_stage=0, tensor_parallel_size=n) for n in (1, 8))

    assert whole / 8 < eighth < whole / 6


def test_sequence_parallelism_divides_activations() -> None:
    whole, half = (predict(sequence_parallel_size=n, checkpoint_interval=1) for n in (1, 2))

    parts = ("activations", "logits")
    assert whole.moment == half.moment == "loss"
    for part in parts:
        assert half.breakdown_bytes[part] == whole.breakdown_bytes[part] / 2
    assert half.breakdown_bytes["weights"] == whole.breakdown_bytes["weights"]


def test_the_first_stage_holds_as_many_micro_batches_as_there_are_stages() -> None:
    workload = Workload(model=load_model_shape("7B"), seq_len=2048, global_batch_size=64)
    model = MemoryModel(workload, h100(4))
    strategy = Strategy(pipeline_parallel_size=4, micro_batch_size=1)
    first, *_, last = model.states.shards(strategy)

    assert (first.num_in_flight, last.num_in_flight) == (4, 1)
    one_batch = Strategy(pipeline_parallel_size=4, micro_batch_size=64)
    assert model.states.shards(one_batch)[0].num_in_flight == 1


def test_a_pipeline_needs_less_than_the_whole_model_and_more_than_its_part() -> None:
    knobs: dict[str, Any] = {"zero_stage": 0, "micro_batch_size": 1, "checkpoint_interval": 1}
    whole, staged = (peak(**knobs, pipeline_parallel_size=n) for n in (1, 4))

    assert whole / 4 < staged < whole


def test_pages_of_states_lie_beside_the_allocator_on_the_device() -> None:
    plain, paged = (
        predict("7B", num_devices=1, micro_batch_size=1, checkpoint_interval=1, optimizer=name)
        for name in ("adamw_8bit", "paged_adamw_8bit")
    )

    states = plain.breakdown_bytes["optimizer states"]
    assert "optimizer states" not in paged.breakdown_bytes
    assert plain.peak_allocated_bytes - paged.peak_allocated_bytes == states
    assert paged.device_overhead_bytes - plain.device_overhead_bytes == states


def test_checkpoints_on_the_host_are_counted_there_for_all_ranks() -> None:
    knobs: dict[str, Any] = {"checkpoint_interval": 1, "offload_checkpoints": "cpu"}
    held = predict(**knobs).host_memory_lower_bytes
    shape = load_model_shape("7B")

    assert held == 4 * shape.num_hidden_layers * 8 * 2048 * 2 * shape.hidden_size
    assert predict(**knobs, sequence_parallel_size=2).host_memory_lower_bytes == held / 2
    assert predict(checkpoint_interval=1).host_memory_bytes == 0


def test_a_second_copy_of_the_weights_takes_memory() -> None:
    knobs: dict[str, Any] = {"zero_stage": 3, "checkpoint_interval": 1, "micro_batch_size": 1}
    plain, two = (predict(**knobs, zero_hpz_partition_size=n) for n in (1, 2))

    assert two.breakdown_bytes["second copy of weights"] == 2 * two.breakdown_bytes["weights"]
    assert two.peak_memory_bytes > plain.peak_memory_bytes


@pytest.mark.parametrize(
    "knobs",
    [
        {"tensor_parallel_size": 2},
        {"pipeline_parallel_size": 4},
        {"sequence_parallel_size": 4, "zero_stage": 3},
        {"zero_stage": 3, "offload_param": "nvme", "offload_optimizer": "nvme"},
        {"zero_stage": 3, "offload_optimizer": "cpu", "offload_ratio": 0.3},
        {"optimizer": "muon"},
        {"attention": "eager", "checkpoint_interval": 1, "checkpoint_scope": "attention"},
        {"mlp_tiles": 4, "loss_tiles": 4, "checkpoint_interval": 2},
        {"embedding_precision": "fp32", "norm_precision": "fp32"},
        {"mlp_precision": "fp8", "torch_compile": True},
    ],
)
@pytest.mark.parametrize("model", ["tiny", "125M", "7B"])
def test_bounds_enclose_and_parts_add_up_with_every_knob(
    model: str, knobs: dict[str, Any]
) -> None:
    prediction = predict(model, seq_len=128, **knobs)

    assert 0 < prediction.peak_memory_lower_bytes <= prediction.peak_memory_bytes
    assert prediction.peak_memory_bytes <= prediction.peak_memory_upper_bytes
    assert sum(prediction.breakdown_bytes.values()) == prediction.peak_memory_bytes
    assert prediction.step_time_s > 0


def test_backward_is_called_by_what_it_does_where_layers_are_computed_again() -> None:
    whole, again = (
        predict(zero_stage=1, micro_batch_size=1, batch=8, fused_kernels=True, **knobs)
        for knobs in ({"offload_optimizer": "cpu"}, {"offload_optimizer": "cpu"} | AGAIN)
    )
    assert whole.moment == "backward"
    assert again.moment == "recomputation of a layer"


AGAIN = {"checkpoint_interval": 8}


def saved(num_devices: int = 4, **knobs: Any) -> dict[str, int]:
    """What is held while a checkpoint is saved."""
    workload = Workload(model=load_model_shape("7B"), seq_len=2048, global_batch_size=64)
    strategy = Strategy.from_dict({"micro_batch_size": 8} | knobs)
    return dict(MemoryModel(workload, h100(num_devices)).peak(strategy).moments["checkpoint save"])


def test_a_checkpoint_gathers_one_weight_at_a_time_and_only_what_is_divided() -> None:
    largest = 2 * load_model_shape("7B").largest_weight
    assert saved(zero_stage=3)["gathered weights"] == largest
    assert saved(zero_stage=1, tensor_parallel_size=2)["gathered weights"] == largest
    assert saved(zero_stage=2)["gathered weights"] == 0
    assert saved(num_devices=1, zero_stage=3)["gathered weights"] == 0


def test_saving_a_checkpoint_is_never_the_peak_of_a_step_that_has_a_batch() -> None:
    for zero_stage in (0, 1, 2, 3):
        moments = saved(zero_stage=zero_stage)
        assert sum(moments.values()) < predict(zero_stage=zero_stage).peak_allocated_bytes


def test_a_public_report_of_both_offloads_is_inside_the_interval(tmp_path: Path) -> None:
    """Llama-3-8B on eight cards of 24 GB: 13 GB were seen on each, [2.26, 5.91] were said."""
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "vocab_size": 128256,
        "max_position_embeddings": 8192,
        "tie_word_embeddings": False,
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    workload = Workload(model=load_model_shape(str(tmp_path)), seq_len=1024, global_batch_size=16)
    hardware = read_hardware("8xRTX4090", host_memory_gib=693).all_ranks
    strategy = Strategy.from_dict(
        {
            "zero_stage": 3,
            "offload_optimizer": "cpu",
            "offload_param": "cpu",
            "checkpoint_interval": 1,
            "micro_batch_size": 1,
        }
    )
    found = AnalyticPredictor(workload, hardware).predict(strategy)

    assert found.peak_device_lower_bytes < 13e9 < 13 * 2**30 < found.peak_device_upper_bytes


@pytest.mark.parametrize(
    ("reserved_gib", "allocated_gib", "model", "knobs"),
    [
        (5.04, 4.75, "1.1B", {"zero_stage": 3, "offload_param": "cpu"}),
        (7.45, 6.18, "3B", {"zero_stage": 3, "offload_param": "cpu", "micro_batch_size": 2}),
        (6.16, 4.11, "1.1B", {"zero_stage": 2}),
        (17.97, 13.40, "3B", {"zero_stage": 2}),
        (14.63, 13.60, "3B", {"zero_stage": 3, "master_weights": "bf16"}),
    ],
)
def test_offloaded_trials_of_one_gpu_are_inside_without_a_simulation(
    reserved_gib: float, allocated_gib: float, model: str, knobs: dict[str, Any]
) -> None:
    """`results/host-memory`: three of them were above the bounds that were said before."""
    common = {"checkpoint_interval": 1, "micro_batch_size": 4, "offload_optimizer": "cpu"}
    strategy = Strategy.from_dict(common | knobs)
    workload = Workload(
        model=load_model_shape(model),
        seq_len=1024,
        global_batch_size=strategy.micro_batch_size,
    )
    hardware = read_hardware("1xH100-80GB", host_memory_gib=126).all_ranks
    found = AnalyticPredictor(workload, hardware).predict(strategy)

    assert found.peak_allocated_bytes / 2**30 == pytest.approx(allocated_gib, rel=0.02)
    assert found.peak_memory_lower_bytes <= reserved_gib * 2**30 <= found.peak_memory_upper_bytes
