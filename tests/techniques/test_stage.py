"""What a stage of a pipeline holds, and which pipelines are refused before they start."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from pipeline_cases import PIPELINED, build_stage, pipeline_workload
from sample_study import SOFTWARE
from small_models import build, write_strategy
from torch import nn

import autotune
from autotune.errors import ConfigError
from autotune.machine.hardware import Hardware
from autotune.question.workload import Workload
from autotune.space.compatibility import conflict
from autotune.space.compatibility.parallel import PIPELINE_PARALLEL_MODEL_TYPES
from autotune.space.strategy import Strategy
from autotune.techniques.blocks import decoder_layers
from autotune.techniques.stage import StandIn, cut_stage


@pytest.mark.parametrize("name", PIPELINED)
def test_stages_share_the_weights_of_the_whole_model(name: str) -> None:
    workload = pipeline_workload(name)
    whole = dict(build_stage(workload, 1, 0).named_parameters())
    stages = [dict(build_stage(workload, 4, stage).named_parameters()) for stage in range(4)]
    held: dict[str, torch.Tensor] = {}
    for stage in stages:
        assert not any(parameter.is_meta for parameter in stage.values())
        held |= stage
    torch.testing.assert_close(held, whole, rtol=0, atol=0)
    num_held = sum(len(stage) for stage in stages)
    num_copies = 1 if workload.model.tie_word_embeddings else 0
    assert num_held == len(whole) + num_copies


def test_a_model_that_is_loaded_already_is_cut_in_place() -> None:
    model = build("llama")
    whole = sum(parameter.numel() for parameter in model.parameters())
    layers = decoder_layers(model, 4)
    cut_stage(model, layers, stage=1, num_stages=4)
    assert len(decoder_layers(model, 4)) == 1
    assert isinstance(model.lm_head, StandIn)
    layer = sum(parameter.numel() for parameter in layers[1].parameters())
    assert sum(parameter.numel() for parameter in model.parameters()) == layer < whole / 4


def _conflict(tiny: Workload, hardware: Hardware, **knobs: Any) -> str:
    workload = replace(tiny, model=replace(tiny.model, **knobs.pop("model", {})))
    strategy = Strategy(**{"pipeline_parallel_size": 2} | knobs)
    return conflict(strategy, workload, replace(hardware, num_devices=8), SOFTWARE) or ""


def test_more_stages_than_layers_are_refused(tiny: Workload, cpu_hardware: Hardware) -> None:
    words = _conflict(tiny, cpu_hardware, pipeline_parallel_size=8)
    assert words == "pipeline_parallel_size 8 is more than the 4 layers of tiny"


def test_every_architecture_that_is_allowed_is_proven() -> None:
    assert {name.split(",")[0] for name in PIPELINED} == PIPELINE_PARALLEL_MODEL_TYPES


def test_an_architecture_without_proof_is_refused(tiny: Workload, cpu_hardware: Hardware) -> None:
    words = _conflict(tiny, cpu_hardware, model={"model_type": "gemma3n_text"})
    assert "stages are not tested with gemma3n_text" in words


@pytest.mark.parametrize(
    "knobs",
    [
        {"zero_stage": 2},
        {"zero_stage": 3},
        {"fused_kernels": True},
        {"zero_stage": 1, "overlap_comm": False},
    ],
    ids=str,
)
def test_what_goes_with_no_pipeline_is_refused(knobs: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"pipeline_parallel_size (2 needs|1, got 2)"):
        Strategy(pipeline_parallel_size=2, **knobs)


def test_apply_sends_pipelines_to_their_own_function(tmp_path: Path) -> None:
    file = write_strategy(tmp_path, Strategy(pipeline_parallel_size=2))
    with pytest.raises(ConfigError, match=r"call autotune\.pipeline instead"):
        autotune.apply(nn.Linear(1, 1), file)


def test_pipeline_sends_other_strategies_to_apply(tmp_path: Path) -> None:
    file = write_strategy(tmp_path, Strategy())
    with pytest.raises(ConfigError, match=r"use autotune\.apply"):
        autotune.pipeline(nn.Linear(1, 1), file)


def test_pipeline_asks_for_its_ranks(tmp_path: Path) -> None:
    file = write_strategy(tmp_path, Strategy(pipeline_parallel_size=2))
    with pytest.raises(ConfigError, match=r"call deepspeed\.init_distributed\(\) before"):
        autotune.pipeline(nn.Linear(1, 1), file)
