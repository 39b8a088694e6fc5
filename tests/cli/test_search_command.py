"""The main job from outside: real searches of a tiny model on the CPU.

Processes of their own where what is proved is theirs: signals, kills, their environment, the start
of a server. The others search in this process, with real trials from one warm server.
"""

from __future__ import annotations

import json
import shutil
import signal
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from command_line import autotune, autotune_here, autotune_process, searching_with
from plain_training import printed_losses
from planted_model import planted_workload

from autotune.errors import LaunchError
from autotune.launch.launcher import Launcher
from autotune.machine.cpu_precisions import cpu_precisions
from autotune.question.workload import Workload

pytestmark = pytest.mark.slow

_TINY = (
    *("search", "--confirm", "0", "--model", "tiny", "--seq-len", "32", "--global-batch", "8"),
    *("--out", "study"),
)

_LONG_SPACE = """
knobs:
  zero_stage: {values: [3]}
  micro_batch_size: {values: [1]}
  checkpoint_interval: {values: [1, 2, 3, 0]}
"""


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A study of four trials, and its JSON answer."""
    folder = tmp_path_factory.mktemp("finished")
    ran = autotune(*_TINY, "--budget", "2m", "--trials", "4", "--json", folder=folder)
    assert ran.returncode == 0, ran.stderr
    return folder, json.loads(ran.stdout)


@pytest.fixture
def warm(launcher: Launcher) -> Iterator[None]:
    """Searches of this process have their server already."""
    with searching_with(launcher):
        yield


def test_search_hands_back_a_front_and_an_export(finished: tuple[Path, dict[str, Any]]) -> None:
    folder, answer = finished
    assert len(answer["front"]) >= 1
    launched = [trial for trial in answer["trials"] if trial["duration_s"] > 0]
    assert len(launched) == 4
    assert all(trial["prediction"] for trial in answer["trials"])
    exports = list((folder / "study" / "exports").iterdir())
    assert len(exports) == 1
    assert (exports[0] / "ds_config.json").exists()


def test_a_cpu_without_bf16_trains_in_fp32_and_says_so_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # oneDNN is kept to AVX2, and what ATen compiles itself too.
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    monkeypatch.setenv("ATEN_CPU_CAPABILITY", "avx2")
    ran = autotune(*_TINY, "--budget", "2m", "--trials", "1", "--json", folder=tmp_path)
    assert ran.returncode == 0, ran.stderr
    assert ran.stderr.count("no bf16 instructions") == 1
    # Two measured trials tell how fast the CPU is: until then no speed is predicted.
    assert "(pred. 0." in ran.stderr
    answer = json.loads(ran.stdout)
    assert not answer["hardware"]["supports_bf16"]
    assert answer["reference"]["precision"] == "fp32"
    [trial] = [trial for trial in answer["trials"] if trial["measurement"]]
    assert (trial["strategy"]["precision"], trial["loss_class"]) == ("fp32", "neutral")
    assert "step time" not in answer["prediction_errors"]
    [export] = (tmp_path / "study" / "exports").iterdir()
    config = json.loads((export / "ds_config.json").read_text())
    assert "bf16" not in config
    assert "fp16" not in config
    guide = (export / "README.md").read_text(encoding="utf-8")
    assert "torch.float32" in guide
    assert "torch.bfloat16" not in guide
    # A CPU that has it asks another question.
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA")
    monkeypatch.delenv("ATEN_CPU_CAPABILITY")
    if cpu_precisions().bf16:
        again = autotune_here(*_TINY, "--budget", "2m", folder=tmp_path)
        assert again.returncode == 2
        assert "bf16 on the device not computed there, computed here" in again.stderr


def test_a_later_study_reuses_what_an_earlier_one_measured_and_says_so(
    finished: tuple[Path, dict[str, Any]], warm: None
) -> None:
    folder, answer = finished
    again = [*_TINY[:-1], "again", "--seed", "1", "--budget", "2m", "--trials", "1", "--json"]
    again += ["--confirm", "0"]
    for reuse in ("study", "auto"):
        ran = autotune_here(*again, "--reuse", reuse, folder=folder)
        assert ran.returncode == 0, ran.stderr
        trials = json.loads(ran.stdout)["trials"]
        reused = [trial for trial in trials if trial["reused_from"]]
        measured = [trial for trial in answer["trials"] if trial["state"] == "complete"]
        assert len(reused) == len(measured)
        assert {trial["reused_from"].rpartition(" of ")[2] for trial in reused} == {"study"}
        assert sum(trial["measurement"] is not None for trial in trials) == len(measured) + 1
    other = autotune_here(
        *_TINY[:-1], "other", "--global-batch", "4", "--reuse", "study", folder=folder
    )
    assert other.returncode == 2
    assert "--reuse study cannot be reused: it measured full, 32 tokens per sample" in other.stderr


def test_study_folder_explains_itself(finished: tuple[Path, dict[str, Any]]) -> None:
    folder, _ = finished
    names = {path.name for path in (folder / "study").iterdir()}
    assert {"question.json", "environment.json", "study.db", "report.txt", "trials"} <= names
    environment = json.loads((folder / "study" / "environment.json").read_text())
    assert {"torch", "deepspeed", "transformers"} <= set(environment["versions"])


def test_the_best_are_run_again_in_turns_and_the_report_gives_intervals(
    tmp_path: Path, warm: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Six seconds each else, which prove no more.
    for module in ("autotune.trials.trial_spec", "autotune.study.confirmation"):
        monkeypatch.setattr(f"{module}.CONFIRMING_S", 1.0)
    command = [*_TINY, "--budget", "4m", "--trials", "2", "--confirm", "2", "--json"]
    ran = autotune_here(*command, folder=tmp_path)
    assert ran.returncode == 0, ran.stderr
    answer = json.loads(ran.stdout)
    assert len(answer["trials"]) == 2
    again = [trial for trial in answer["trials"] if trial["confirmations"]]
    assert 1 <= len(again) <= 2
    assert all(trial["throughput"]["half_width"] > 0 for trial in again)
    best = answer["picks"]["throughput"]
    # One that a run shows to be slower has no part in the rest.
    [runs] = [len(trial["confirmations"]) for trial in again if trial["number"] == best]
    assert runs >= 3
    assert f"trial {best} (confirming run):" in ran.stderr
    report = autotune_here("report", "study", folder=tmp_path).stdout
    assert "Confirmed with longer, interleaved runs" in report
    assert "±" in report
    guide = tmp_path / "study" / "exports" / f"trial-{best}" / "README.md"
    assert "tokens/s over" in guide.read_text(encoding="utf-8")


def test_trials_of_one_device_run_side_by_side(tmp_path: Path) -> None:
    command = [*_TINY, "--budget", "3m", "--trials", "4", "--devices-per-trial", "1", "--json"]
    ran = autotune(*command, folder=tmp_path)
    assert ran.returncode == 0, ran.stderr
    answer = json.loads(ran.stdout)
    assert answer["hardware"]["num_devices"] == 1
    assert answer["counts"]["complete"] + answer["counts"]["pruned"] >= 4
    times = []
    for folder in (tmp_path / "study" / "trials").iterdir():
        events = [json.loads(line) for line in (folder / "rank0.jsonl").read_text().splitlines()]
        times.append((events[0]["at"], events[-1]["at"]))
        assert not (folder / "rank1.jsonl").exists()
    assert len(times) == 4
    first, second = sorted(times)[:2]
    assert second[0] < first[1]


def test_report_shows_the_study_again(finished: tuple[Path, dict[str, Any]]) -> None:
    folder, answer = finished
    ran = autotune_here("report", "study", "--json", folder=folder)
    assert ran.returncode == 0, ran.stderr
    assert json.loads(ran.stdout)["front"] == answer["front"]
    assert "tokens/s" in autotune_here("report", "study", folder=folder).stdout


def test_a_study_may_be_moved(finished: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    folder, answer = finished
    shutil.copytree(folder / "study", tmp_path / "elsewhere")
    ran = autotune_here("report", "elsewhere", "--json", folder=tmp_path)
    assert ran.returncode == 0, ran.stderr
    assert json.loads(ran.stdout)["front"] == answer["front"]


def test_what_the_user_has_is_measured_first_and_every_view_compares_with_it(
    tmp_path: Path, warm: None
) -> None:
    (tmp_path / "mine.yaml").write_text(
        "model_name_or_path: tiny\nfinetuning_type: full\ncutoff_len: 32\nbf16: true\n"
        "per_device_train_batch_size: 2\ngradient_accumulation_steps: 2\n"
        "deepspeed: {zero_optimization: {stage: 3, reduce_bucket_size: auto}}\n"
    )
    search = ("search", "--from", "mine.yaml", "--out", "study", "--confirm", "0")
    ran = autotune_here(*search, "--budget", "2m", "--trials", "2", "--json", folder=tmp_path)
    assert ran.returncode == 0, ran.stderr
    answer = json.loads(ran.stdout)
    assert (answer["workload"]["seq_len"], answer["workload"]["global_batch_size"]) == (32, 8)
    baseline, first = answer["baseline"], answer["trials"][0]
    assert baseline["trial"] == 0
    assert first["strategy"] == baseline["strategy"]
    # No search space has this bucket: the square of the model's width.
    assert (first["strategy"]["zero_stage"], first["strategy"]["reduce_bucket_size"]) == (3, 9216)
    assert first["measurement"]
    best = answer["trials"][answer["best"]["trial"]]["measurement"]["tokens_per_second"]
    own = first["measurement"]["tokens_per_second"]
    assert baseline["speedup"] == pytest.approx(best / own)
    again = autotune_here(
        *(*_TINY, "--budget", "2m", "--trials", "2", "--sampler", "random"), folder=tmp_path
    )
    assert again.returncode == 0, again.stderr
    assert "Baseline (mine.yaml): trial 0, Z3 mb2 ckpt1" in again.stdout
    report = autotune_here("report", "study", folder=tmp_path)
    assert "Baseline (mine.yaml): trial 0, Z3 mb2 ckpt1" in report.stdout


def test_the_same_question_goes_on_and_repeats_nothing(
    finished: tuple[Path, dict[str, Any]], warm: None
) -> None:
    folder, _ = finished
    ran = autotune_here(*_TINY, "--budget", "2m", "--trials", "6", "--json", folder=folder)
    assert ran.returncode == 0, ran.stderr
    launched = [t for t in json.loads(ran.stdout)["trials"] if t["duration_s"] > 0]
    assert all(trial["measurement"] for trial in launched)
    strategies = [json.dumps(trial["strategy"]) for trial in launched]
    assert len(strategies) == len(set(strategies)) == 6


def test_another_question_in_the_folder_is_refused_and_nothing_is_overwritten(
    finished: tuple[Path, dict[str, Any]],
) -> None:
    folder, _ = finished
    before = (folder / "study" / "question.json").read_bytes()
    ran = autotune_here(*_TINY[:-2], "--seed", "7", "--out", "study", folder=folder)
    assert ran.returncode == 2
    assert "--seed 0 there, 7 here" in ran.stderr
    assert (folder / "study" / "question.json").read_bytes() == before


_PLAIN_TRAINING = '''
"""Plain DeepSpeed with exported folders: the user's side, with the trials' weights and data."""
import json, sys, os
import torch, deepspeed
import autotune
from autotune.trials.trial import TrialSpec
from autotune.worker.model import build_model
from autotune.worker.samples import micro_batch

deepspeed.init_distributed("gloo")
rank, world = torch.distributed.get_rank(), torch.distributed.get_world_size()
for number in sys.argv[1:]:
    export = f"exported-{number}"
    spec = TrialSpec.from_dict(json.load(open(f"study/trials/{int(number):04d}/trial.json")))
    config = json.load(open(f"{export}/ds_config.json"))
    model = build_model(spec.workload, spec.strategy, device=torch.device("cpu"),
                        deepspeed_config=config, seed=spec.seed)
    model = autotune.apply(model, f"{export}/strategy.yaml")
    engine, *_ = deepspeed.initialize(
        model=model,
        model_parameters=[p for p in model.parameters() if p.requires_grad],
        optimizer=autotune.create_optimizer(model, f"{export}/strategy.yaml"),
        config=f"{export}/ds_config.json",
    )
    accumulation = engine.gradient_accumulation_steps()
    for step in range(3):
        losses = []
        for micro in range(accumulation):
            batch = micro_batch(spec, data_rank=rank, step=step, micro=micro)
            loss = engine(input_ids=batch, labels=batch).loss
            engine.backward(loss)
            engine.step()
            losses.append(loss.detach().float())
        mean = torch.stack(losses).mean()
        torch.distributed.all_reduce(mean)
        if rank == 0:
            print("LOSS", float(mean) / world, flush=True)
os._exit(0)
'''


def test_exports_train_in_fresh_processes_with_the_losses_of_their_trials(
    tmp_path: Path, warm: None
) -> None:
    space = """
knobs:
  zero_stage: [1, 3]
  optimizer: [adamw, adamw_8bit]
  checkpoint_interval: [2]
  micro_batch_size: [2]
"""
    (tmp_path / "space.yaml").write_text(space)
    question = (*_TINY, "--space", "space.yaml", "--sampler", "grid", "--budget", "2m", "--json")
    ran = autotune_here(*question, folder=tmp_path)
    assert ran.returncode == 0, ran.stderr
    trials = [trial for trial in json.loads(ran.stdout)["trials"] if trial["measurement"]]
    assert len(trials) == 4
    numbers = [str(trial["number"]) for trial in trials]
    for number in numbers:
        out = ("--trial", number, "--out", f"exported-{number}")
        exported = autotune_here("export", "study", *out, folder=tmp_path)
        assert exported.returncode == 0, exported.stderr
    (tmp_path / "train.py").write_text(_PLAIN_TRAINING)
    losses = printed_losses(tmp_path, *numbers)
    expected = [loss for trial in trials for loss in trial["measurement"]["losses"][:3]]
    assert losses == pytest.approx(expected, rel=1e-6)


def _wait_for_a_finished_trial(study: Path, num_trials: int = 1, timeout_s: float = 60) -> None:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        results = list(study.glob("trials/*/rank0.jsonl"))
        if sum('"result"' in path.read_text() for path in results) >= num_trials:
            return
        time.sleep(0.05)
    raise AssertionError("no trial finished in time")


def _complete(study: Path) -> list[int]:
    with sqlite3.connect(study / "study.db") as database:
        rows = database.execute("select number from trials where state = 'COMPLETE'").fetchall()
    return [row[0] for row in rows]


def test_a_search_killed_in_the_middle_resumes_and_has_lost_nothing(
    tmp_path: Path, warm: None
) -> None:
    (tmp_path / "space.yaml").write_text(_LONG_SPACE)
    arguments = (*_TINY, "--global-batch", "64", "--space", "space.yaml", "--budget", "3m")
    running = autotune_process(*arguments, folder=tmp_path)
    study = tmp_path / "study"
    _wait_for_a_finished_trial(study, num_trials=2)
    time.sleep(0.8)
    below = psutil.Process(running.pid).children(recursive=True)
    running.send_signal(signal.SIGKILL)
    running.communicate()
    told = _complete(study)
    assert told
    _, alive = psutil.wait_procs(below, timeout=5)
    assert alive == [], "the search left processes behind"
    ran = autotune_here(*arguments, "--resume", "--json", folder=tmp_path)
    assert ran.returncode == 0, ran.stderr
    trials = json.loads(ran.stdout)["trials"]
    assert {t["number"] for t in trials if t["state"] == "complete"} >= set(told)
    # Some may have ended early, beaten by the others.
    measured = [json.dumps(t["strategy"]) for t in trials if t["measurement"]]
    assert len(measured) == len(set(measured)) == 4


def test_a_second_search_is_refused_with_the_pid_of_the_first_whose_ctrl_c_keeps_everything(
    tmp_path: Path,
) -> None:
    (tmp_path / "space.yaml").write_text(_LONG_SPACE)
    arguments = (*_TINY, "--global-batch", "64", "--space", "space.yaml", "--budget", "5m")
    running = autotune_process(*arguments, folder=tmp_path)
    try:
        _wait_for_a_finished_trial(tmp_path / "study")
        second = autotune_here(*arguments, folder=tmp_path)
    finally:
        running.send_signal(signal.SIGINT)
        stdout, stderr = running.communicate(timeout=30)
    assert second.returncode == 2
    assert f"pid {running.pid}" in second.stderr
    assert running.returncode == 0, stderr
    assert "tokens/s" in stdout
    assert "To resume, run the same command" in stderr


def test_a_trial_that_outlives_the_budget_is_stopped_and_run_again_on_resume(
    tmp_path: Path, tiny: Workload, warm: None
) -> None:
    planted_workload(tmp_path / "model", "hang", tiny)
    (tmp_path / "space.yaml").write_text("knobs:\n  micro_batch_size: [2]\n")
    question = (
        *("search", "--model", str(tmp_path / "model"), "--trust-remote-code", "--seq-len", "32"),
        *("--global-batch", "8", "--space", "space.yaml", "--json"),
    )
    # A slow machine needs more than the first budget before any trial starts.
    for budget_s in (15, 75):
        arguments = (*question, "--out", f"study{budget_s}")
        started = time.monotonic()
        ran = autotune_here(*arguments, "--budget", f"{budget_s}s", folder=tmp_path)
        # It hangs for an hour; what ends it is the budget, not the five minutes of its timeout.
        assert time.monotonic() - started < 120
        assert ran.returncode == 1, ran.stderr
        if trials := json.loads(ran.stdout)["trials"]:
            break
    [stopped] = trials
    assert stopped["state"] == "interrupted"
    assert stopped["failure"]["kind"] == "interrupted"
    assert "budget ended" in stopped["failure"]["message"]

    code = tmp_path / "model" / "modeling_planted.py"
    code.write_text(code.read_text().replace("time.sleep(3600)", "pass"))
    ran = autotune_here(*arguments, "--budget", "2m", folder=tmp_path)
    assert ran.returncode == 0, ran.stderr
    first, second = json.loads(ran.stdout)["trials"]
    assert first == stopped
    assert second["state"] == "complete"
    assert second["strategy"] == stopped["strategy"]


def test_trials_in_another_storage_are_resumed_and_reported_from_there(
    tmp_path: Path, warm: None
) -> None:
    kept = ("--storage", f"sqlite:///{tmp_path / 'other.db'}")
    for num_trials in (1, 2):
        trials = ("--trials", str(num_trials))
        ran = autotune_here(*_TINY, "--budget", "2m", *kept, *trials, "--json", folder=tmp_path)
        assert ran.returncode == 0, ran.stderr
        assert [t["number"] for t in json.loads(ran.stdout)["trials"]] == list(range(num_trials))
    reported = autotune_here("report", "study", *kept, folder=tmp_path).stdout
    assert f"--storage {kept[1]}" in reported

    elsewhere = autotune_here("report", "study", folder=tmp_path)
    assert elsewhere.returncode == 2
    assert "use the same here" in elsewhere.stderr
    assert not (tmp_path / "study" / "study.db").exists()

    other_question = [*_TINY[:-1], "elsewhere/study", "--seed", "7"]
    refused = autotune_here(*other_question, "--budget", "2m", *kept, folder=tmp_path)
    assert refused.returncode == 2
    assert "--seed 0 there, 7 here" in refused.stderr


def test_a_budget_shorter_than_the_warm_up_says_so(tmp_path: Path) -> None:
    ran = autotune(*_TINY, "--budget", "1s", folder=tmp_path)
    assert ran.returncode == 1
    assert "ended while PyTorch and DeepSpeed were imported" in " ".join(ran.stdout.split())
    assert "Traceback" not in ran.stderr


def test_a_termination_signal_ends_as_cleanly_as_ctrl_c(tmp_path: Path) -> None:
    running = autotune_process(*_TINY, "--budget", "2m", folder=tmp_path)
    # Two, since the first is told only after both of its ranks have ended.
    _wait_for_a_finished_trial(tmp_path / "study", num_trials=2)
    below = psutil.Process(running.pid).children(recursive=True)
    running.send_signal(signal.SIGTERM)
    _, stderr = running.communicate(timeout=30)
    assert running.returncode == 0, stderr
    assert "To resume, run the same command" in stderr
    _, alive = psutil.wait_procs(below, timeout=5)
    assert alive == []


def test_a_search_whose_server_cannot_start_prints_its_report_and_exits_with_1(
    finished: tuple[Path, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(finished[0] / "study", tmp_path / "study")

    def start(launcher: Launcher, should_stop: object) -> float:
        raise LaunchError("the trial server was killed (SIGKILL); see server.log")

    monkeypatch.setattr(Launcher, "start", start)
    ran = autotune_here(*_TINY, "--budget", "2m", "--trials", "6", folder=tmp_path)
    assert ran.returncode == 1
    assert "tokens/s" in ran.stdout
    assert "autotune: the trial server was killed (SIGKILL)" in ran.stderr.splitlines()[-1]
