"""`torch.compile` of the decoder layers: compiled code runs, and trains as the layers do."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from conftest import RunTrial
from one_batch import train
from small_models import applied, build
from torch import nn
from torch._dynamo.utils import counters

from autotune.machine.software import detect_software
from autotune.question.workload import Method, Workload
from autotune.techniques.compilation import CompilationCounter, compile_in_this_process

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not detect_software().has_cpu_inductor, reason="torch.compile needs a C++ compiler"
    ),
    # Inductor's own use of what torch is about to drop, and Dynamo's look at inputs' gradients.
    pytest.mark.filterwarnings("ignore:`torch.jit.script:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning"),
]

NUM_LAYERS = 10
"""More than Dynamo compiles one function for (`recompile_limit`): the layers must share code."""


def _applied(**knobs: Any) -> nn.Module:
    method = Method.LORA if "lora_rank" in knobs else Method.FULL
    model = build("llama", num_hidden_layers=NUM_LAYERS)
    return applied(model, method=method, precision="fp32", **knobs)


@pytest.fixture(autouse=True)
def _nothing_compiled() -> Iterator[None]:
    torch._dynamo.reset()
    counters.clear()
    compile_in_this_process()
    yield
    torch._dynamo.reset()


@pytest.mark.parametrize(
    "knobs",
    [
        {},
        {"checkpoint_interval": 2},
        {"checkpoint_interval": 1, "checkpoint_scope": "attention"},
        {"mlp_tiles": 2},
        {"lora_rank": 4, "checkpoint_interval": 2},
    ],
    ids=str,
)
def test_layers_are_compiled_whole_and_share_their_code(
    knobs: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    # The graphs are what matters here; the trials below have C++ made of them.
    compile_with = nn.Module.compile
    monkeypatch.setattr(nn.Module, "compile", lambda m: compile_with(m, backend="aot_eager"))
    plain, compiled = _applied(**knobs), _applied(torch_compile=True, **knobs)
    assert list(compiled.state_dict()) == list(plain.state_dict())
    train(plain)
    train(compiled)  # the second forward runs checkpoints of several layers
    train(compiled)
    counter = CompilationCounter()
    loss, gradients = train(compiled)
    expected_loss, expected_gradients = train(plain)
    assert counter.num_compilations == 0
    assert not counters["graph_break"]
    assert counters["stats"]["unique_graphs"] in (1, 2)
    assert loss == pytest.approx(expected_loss, rel=1e-6)
    torch.testing.assert_close(gradients, expected_gradients)


TRIALS: tuple[dict[str, Any], ...] = (
    {"zero_stage": 2, "checkpoint_interval": 2},
    {"zero_stage": 1, "lora_rank": 4, "lora_targets": "mlp"},
)


@pytest.mark.parametrize("knobs", TRIALS, ids=str)
def test_a_compiled_trial_learns_the_same_and_times_no_compilation(
    run_trial: RunTrial, tiny: Workload, knobs: dict[str, Any], tmp_path: Path
) -> None:
    method = Method.LORA if "lora_rank" in knobs else Method.FULL
    arguments: dict[str, Any] = {
        "workload": replace(tiny, method=method),
        "precision": "fp32",
        "timed_steps": 4,
        "learning_rate": 1e-3,
    }
    plain = run_trial(**arguments, **knobs).measurement
    compiled = run_trial(folder=tmp_path, torch_compile=True, **arguments, **knobs).measurement
    assert plain is not None
    assert compiled is not None
    num_common = min(len(plain.losses), len(compiled.losses))
    assert num_common >= 5
    assert compiled.losses[:num_common] == pytest.approx(plain.losses[:num_common], rel=1e-5)
    events = [json.loads(line) for line in (tmp_path / "rank0.jsonl").read_text().splitlines()]
    steps = [event for event in events if event["event"] == "step"]
    assert not steps[0]["is_timed"]
    assert max(compiled.step_times_s) < steps[0]["time_s"]
    assert not [p for p in psutil.process_iter(["cmdline"]) if _is_compile_worker(p)]


def _is_compile_worker(process: psutil.Process) -> bool:
    return any("compile_worker" in part for part in process.info["cmdline"] or ())
