"""Programs that know nothing of autotune, run as trials: real engines on two CPU ranks.

The first run is the user's own; each later one has a strategy in it, and begins with the same
loss where the samples of a step are the same.
"""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from autotune.knob_values import Batching
from autotune.launch.launcher import Launcher
from autotune.machine.hardware import Hardware
from autotune.question.unknown_model import unknown_model
from autotune.question.workload import Workload
from autotune.script.asked import AskedByRun, asked_by
from autotune.script.findings import Findings
from autotune.script.launch_words import read_command
from autotune.space.strategy import Strategy
from autotune.trials.script_run import ScriptRun, script_run
from autotune.trials.trial import Outcome, TrialSpec

pytestmark = pytest.mark.slow

SCRIPTS = Path(__file__).parents[1] / "own_scripts"
SIZES = "--per_device_train_batch_size 2 --gradient_accumulation_steps 4 --bf16 false"
HF = f"--output_dir mine --deepspeed ds.json --report_to none {SIZES}"
NOISY = f"{HF} --eval_strategy steps --eval_steps 1 --save_steps 1 --logging_steps 1"

PLAIN = "plain_deepspeed.py --bs {micro_batch_size=2} --accum {gradient_accumulation_steps=4}"
KNOWN = {
    "plain": f"deepspeed --num_gpus 2 {PLAIN}",
    "trainer": f"torchrun --nproc-per-node 2 hf_trainer.py {NOISY}",
    "sft": f"trl_sft.py {HF}",
    "sft joined": f"trl_sft.py {HF}",
    "sft padding-free": f"trl_sft.py {HF} --padding_free true",
    "sft packed": f"trl_sft.py {HF} --packing true --max_length 128",
    "accelerate": "accelerate launch --num_processes 2 accelerate_loop.py",
}
UNKNOWN = {
    "dpo": f"trl_dpo.py {HF} --max_length 200",
    "bert": f"bert_classification.py {HF}",
    "t5": f"t5_translation.py {HF}",
    "vit": f"vit_classification.py {HF}",
    "llava": f"vision_language.py {HF}",
}
SAME_SAMPLES = (
    "trainer",
    "sft",
    "sft joined",
    "sft padding-free",
    "sft packed",
    "dpo",
    "vit",
    "llava",
)
"""Of each the samples of an optimizer step, and the loss of a sample, do not depend on batches."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The scripts, where whatever they write would be seen."""
    return Path(shutil.copytree(SCRIPTS, tmp_path / "own"))


def small_llama() -> Any:
    """As `own_scripts/small_data.py` has it."""
    config = LlamaConfig(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=500,
        max_position_embeddings=256,
    )
    return AutoModelForCausalLM.from_config(config)


def first_run(
    words: str, folder: Path, launcher: Launcher, hardware: Hardware
) -> tuple[AskedByRun, Outcome]:
    command = read_command(words.split(), folder).command
    place = folder.parent / "first"
    place.mkdir()
    nothing = Workload(model=unknown_model("command", 1), seq_len=1, global_batch_size=1)
    spec = TrialSpec(
        workload=nothing,
        strategy=Strategy(),
        num_ranks=2,
        composes=False,
        timed_steps=2,
        script=ScriptRun(command=command, is_untouched=True),
    )
    outcome = launcher.run(spec, folder=place, timeout_s=200)
    assert outcome.failure is None, outcome.failure
    findings = Findings.model_validate(outcome.findings)
    return asked_by(findings, command, hardware, place, {}), outcome


def run_with(asked: AskedByRun, strategy: Strategy, folder: Path, launcher: Launcher) -> Outcome:
    place = folder.parent / f"zero{strategy.zero_stage}"
    place.mkdir()
    spec = TrialSpec(
        workload=asked.workload,
        strategy=strategy,
        num_ranks=2,
        timed_steps=2,
        script=script_run(asked.own_training),
    )
    return launcher.run(spec, folder=place, timeout_s=200)


@pytest.mark.parametrize("name", [*KNOWN, *UNKNOWN])
def test_a_program_is_measured_as_it_is_and_under_a_strategy(
    name: str, folder: Path, launcher: Launcher, cpu_hardware: Hardware
) -> None:
    before = sorted(path.name for path in folder.rglob("*"))
    words = KNOWN.get(name) or UNKNOWN[name]
    asked, own = first_run(words, folder, launcher, cpu_hardware)
    assert own.measurement is not None
    assert asked.workload.global_batch_size == 16
    assert asked.baseline.micro_batch_size == 2
    assert asked.own_training.is_predictable is (name in KNOWN)
    strategy = replace(asked.baseline, zero_stage=3, micro_batch_size=4, checkpoint_interval=1)
    if name in SAME_SAMPLES:
        strategy = replace(strategy, zero_stage=1)
    if name == "sft joined":
        assert asked.own_training.joins_batches
        strategy = replace(strategy, batching=Batching.PADDING_FREE)
    outcome = run_with(asked, strategy, folder, launcher)
    assert outcome.failure is None, outcome.failure
    assert outcome.measurement is not None
    assert outcome.measurement.unit == ("samples" if name == "vit" else "tokens")
    assert outcome.measurement.samples_per_second > 0  # type: ignore[operator]
    if name in SAME_SAMPLES:
        # The user's own run warms up for a step more.
        num = min(len(outcome.measurement.losses), len(own.measurement.losses))
        expected = pytest.approx(own.measurement.losses[:num], rel=1e-3)
        assert outcome.measurement.losses[:num] == expected
    assert sorted(path.name for path in folder.rglob("*") if "__pycache__" not in str(path)) == [
        each for each in before if "__pycache__" not in each
    ]


def test_real_weights_are_the_same_under_zero_3(
    folder: Path, launcher: Launcher, cpu_hardware: Hardware
) -> None:
    torch.manual_seed(0)
    small_llama().save_pretrained(folder / "weights")
    assert (folder / "weights" / "model.safetensors").exists()
    asked, own = first_run(f"pretrained.py {HF}", folder, launcher, cpu_hardware)
    strategy = replace(asked.baseline, zero_stage=3, micro_batch_size=4, checkpoint_interval=2)
    outcome = run_with(asked, strategy, folder, launcher)
    assert outcome.measurement is not None, outcome.failure
    assert own.measurement is not None
    num = min(len(outcome.measurement.losses), len(own.measurement.losses))
    expected = pytest.approx(own.measurement.losses[:num], rel=1e-3)
    assert outcome.measurement.losses[:num] == expected


BAD = {
    "ends before a trial has enough": (
        "bad.py --steps 1 --bs {micro_batch_size=2} --accum {gradient_accumulation_steps=2}",
        "after 1 optimizer steps",
    ),
    "calls no engine": ("import sys", "never called deepspeed.initialize"),
    "exits": ("import sys; sys.exit(3)", "ended with exit status 3"),
    "reads from a terminal": ("input('name: ')", "terminal"),
    "wants the network": (
        "from huggingface_hub.errors import OfflineModeIsEnabled\n"
        "raise OfflineModeIsEnabled('no')",
        "network",
    ),
    "dies in one rank": (
        "import os, signal, time\n"
        "os.kill(os.getpid(), signal.SIGKILL) if os.environ['RANK'] == '1' else time.sleep(60)",
        "SIGKILL",
    ),
    "hangs": ("import time\ntime.sleep(600)", "--trial-timeout"),
    "raises": ("raise ValueError('of its own')", "of its own"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_program_that_does_not_train_is_told_in_a_line(
    name: str, folder: Path, launcher: Launcher
) -> None:
    text, said = BAD[name]
    words = text.split()
    if not text.startswith("bad.py"):
        (folder / "bad.py").write_text(text)
        words = ["bad.py"]
    else:
        (folder / "plain_deepspeed.py").rename(folder / "bad.py")
    command = read_command(words, folder).command
    nothing = Workload(model=unknown_model("command", 1), seq_len=1, global_batch_size=1)
    spec = TrialSpec(
        workload=nothing,
        strategy=Strategy(),
        num_ranks=2,
        composes=False,
        script=ScriptRun(command=command, is_untouched=True),
    )
    place = folder.parent / "first"
    place.mkdir()
    timeout_s = 3.0 if name == "hangs" else 100.0
    failure = launcher.run(spec, folder=place, timeout_s=timeout_s).failure
    assert failure is not None
    assert said in failure.message
    assert not failure.kind.is_out_of_memory
    assert "\n" not in failure.message


def test_a_program_that_ignores_its_micro_batch_is_told_what_to_write(
    folder: Path, launcher: Launcher, cpu_hardware: Hardware
) -> None:
    words = "plain_deepspeed.py --bs 2 --accum {gradient_accumulation_steps=4}"
    asked, _ = first_run(words, folder, launcher, cpu_hardware)
    failure = run_with(
        asked, replace(asked.baseline, micro_batch_size=4), folder, launcher
    ).failure
    assert failure is not None
    assert "{micro_batch_size}" in failure.message


def test_a_program_that_prints_without_end_is_stopped(
    folder: Path, launcher: Launcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("autotune.launch.launcher._MOST_OUTPUT_BYTES", 2**20)
    (folder / "bad.py").write_text("while True: print('x' * 10_000)")
    command = read_command(["bad.py"], folder).command
    nothing = Workload(model=unknown_model("command", 1), seq_len=1, global_batch_size=1)
    spec = TrialSpec(
        workload=nothing,
        strategy=Strategy(),
        num_ranks=1,
        script=ScriptRun(command=command, is_untouched=True),
    )
    place = folder.parent / "first"
    place.mkdir()
    failure = launcher.run(spec, folder=place, timeout_s=60).failure
    assert failure is not None
    assert "print less" in failure.message
