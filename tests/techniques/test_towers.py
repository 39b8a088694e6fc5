"""Of a vision-language model the language part is trained, and the rest is held."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from vision_models import build_vision, write_vision_config

from autotune.errors import ConfigError
from autotune.knob_values import CheckpointScope
from autotune.machine.hardware import DEVICE_KINDS, DeviceType, Hardware
from autotune.machine.software import Software
from autotune.predictor import AnalyticPredictor
from autotune.question.model_reader import Vision, load_model_shape
from autotune.question.workload import Method, Workload
from autotune.space.compatibility import conflict
from autotune.space.strategy import Strategy
from autotune.space.strategy_file import StrategyFile, read_strategy_file
from autotune.techniques.apply import apply, apply_strategy
from autotune.techniques.towers import Tower
from autotune.worker.model import build_model

H100 = Hardware(
    device_type=DeviceType.CUDA,
    device_kind="H100-80GB",
    num_devices=1,
    device_memory_bytes=DEVICE_KINDS["H100-80GB"].memory_bytes,
    host_memory_bytes=2**38,
    flops_per_s=DEVICE_KINDS["H100-80GB"].flops_per_s,
    memory_bytes_per_s=DEVICE_KINDS["H100-80GB"].memory_bytes_per_s,
    compute_capability=(9, 0),
)
WHOLE = ("gemma3", "llava", "qwen2_5_vl")


def _workload(folder: Path, model_type: str, vision: Vision = Vision.FROZEN) -> Workload:
    write_vision_config(folder, model_type)
    shape = load_model_shape(str(folder), vision=vision)
    return Workload(model=shape, seq_len=16, global_batch_size=2)


@pytest.mark.parametrize("model_type", WHOLE)
def test_the_users_own_model_trains_its_language_part_alone(model_type: str) -> None:
    model = build_vision(model_type)
    strategy = Strategy(checkpoint_interval=1, checkpoint_scope=CheckpointScope.LAYER, mlp_tiles=2)
    model = apply_strategy(model, strategy, method=Method.FULL, lora_targets=())
    tokens = torch.randint(7, 64, (2, 12))
    model(input_ids=tokens, labels=tokens).loss.backward()
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trained == {name for name, p in model.named_parameters() if p.grad is not None}
    assert trained
    assert not any("vision" in name or "visual" in name or "projector" in name for name in trained)


@pytest.mark.parametrize("model_type", WHOLE)
def test_adapters_are_on_the_language_part_alone(model_type: str) -> None:
    model = build_vision(model_type)
    strategy = Strategy(lora_rank=4)
    wrapped = apply_strategy(model, strategy, method=Method.LORA, lora_targets=("all-linear",))
    trained = [name for name, p in wrapped.named_parameters() if p.requires_grad]
    assert len(trained) == 2 * 7 * 4
    assert all("language_model" in name for name in trained)


def test_a_trial_holds_the_tower_frozen(tmp_path: Path) -> None:
    workload = _workload(tmp_path, "gemma3")
    model = build_model(
        workload, Strategy(), device=torch.device("cpu"), deepspeed_config={}, seed=0
    )
    num = sum(parameter.numel() for parameter in model.parameters())
    frozen = sum(p.numel() for p in model.parameters() if not p.requires_grad)
    assert num == workload.model.num_held_parameters
    assert frozen == workload.model.tower_parameters


def test_a_trial_trains_a_tower_that_is_to_be_trained(tmp_path: Path) -> None:
    workload = _workload(tmp_path, "gemma3", Vision.TRAINED)
    model = build_model(
        workload, Strategy(), device=torch.device("cpu"), deepspeed_config={}, seed=0
    )
    frozen = _workload(tmp_path, "gemma3")
    other = build_model(
        frozen, Strategy(), device=torch.device("cpu"), deepspeed_config={}, seed=0
    )
    tokens = torch.randint(7, 64, (2, 12))
    loss = model(input_ids=tokens, labels=tokens).loss
    loss.backward()
    assert torch.equal(loss, other(input_ids=tokens, labels=tokens).loss)
    num = sum(p.grad.numel() for p in model.parameters() if p.grad is not None)
    assert num == workload.num_trainable_parameters(0) == frozen.model.num_held_parameters
    assert not any(p.grad.any() for p in model.tower.parameters())  # type: ignore[union-attr]


def test_the_users_own_tower_is_trained_where_the_export_says_so(tmp_path: Path) -> None:
    exported = StrategyFile(
        model="mine",
        seq_len=16,
        global_batch_size=2,
        method=Method.FULL,
        lora_targets=("all-linear",),
        learning_rate=None,
        strategy=Strategy(),
        trains_tower=True,
    )
    path = tmp_path / "strategy.yaml"
    path.write_text(exported.to_yaml())
    assert read_strategy_file(path) == exported
    model = apply(build_vision("llava"), path)
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_adapters_do_not_go_with_a_tower_that_is_trained(tmp_path: Path) -> None:
    workload = _workload(tmp_path, "llava", Vision.TRAINED)
    with pytest.raises(ConfigError, match="choose --vision frozen"):
        replace(workload, method=Method.LORA)


def test_a_tower_of_many_pieces_has_every_parameter() -> None:
    tower = Tower(2**22 + 5, torch.bfloat16, is_trained=False)
    assert [p.numel() for p in tower.parameters()] == [2**22, 5]


@pytest.mark.parametrize("zero_stage", [0, 1, 2, 3])
def test_a_frozen_tower_takes_its_weights_in_memory(zero_stage: int, tmp_path: Path) -> None:
    with_tower = _workload(tmp_path, "gemma3")
    model = with_tower.model
    alone = replace(with_tower, model=replace(model, tower_parameters=0))
    more = replace(with_tower, model=replace(model, tower_parameters=10**9))
    strategy = Strategy(zero_stage=zero_stage)
    peaks = [
        AnalyticPredictor(workload, H100, traces=False).predict(strategy).peak_allocated_bytes
        for workload in (alone, more)
    ]
    assert peaks[1] - peaks[0] == pytest.approx(2e9, rel=0.01)


@pytest.mark.parametrize(
    "knobs",
    [
        {"loss_tiles": 2},
        {"tensor_parallel_size": 2},
        {"pipeline_parallel_size": 2},
        {"norm_precision": "fp32"},
    ],
)
def test_what_cuts_a_model_where_images_go_past_is_refused(
    knobs: dict[str, object], tmp_path: Path
) -> None:
    strategy = Strategy.from_dict(knobs)
    hardware, software = replace(H100, num_devices=2), Software(versions={})
    words = conflict(strategy, _workload(tmp_path, "llava"), hardware, software)
    assert words
    assert "--vision absent" in words
    alone = _workload(tmp_path, "llava", Vision.ABSENT)
    assert conflict(strategy, alone, hardware, software) is None
