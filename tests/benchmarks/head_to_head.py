"""autotune against DeepSpeed Autotuning, and against tuning by hand, on the same machine.

    python tests/benchmarks/head_to_head.py peer     FOLDER [--model 1.1B] [--minutes 8]
    python tests/benchmarks/head_to_head.py autotune FOLDER [--model 1.1B] [--minutes 8]
    python tests/benchmarks/head_to_head.py by-hand  FOLDER [--model 1.1B] [--minutes 8]
    python tests/benchmarks/head_to_head.py report   FOLDER

Run one after the other; each gets the same minutes from its command's start, and writes into
FOLDER. What each may choose:

    peer      DeepSpeed Autotuning 0.19.8 in its fast mode over all ZeRO stages: stage and
              micro-batch. It is given what it needs besides DeepSpeed: tabulate, a `deepspeed` and
              a `pdsh` on the PATH (it calls pdsh even on one machine; here it runs the command),
              and the device's architecture. What was its best is run again by the same script,
              with gradient accumulation up to the same global batch.
    autotune  `autotune search` with its default space: knobs that cannot change the loss. Of
              them some are techniques that the peer does not have.
    by-hand   plain DeepSpeed: ZeRO stage, micro-batch doubled until memory runs out, checkpointing
              on or off. Each point is a trial as `autotune search` runs it, which is many times
              faster than a script that is started again for each.

Without a GPU the tiny model takes the place of --model.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

from trial_recorder import Case, read_records, record

from autotune.machine.hardware import DeviceType, detect_hardware
from autotune.question.presets import PRESETS
from autotune.question.workload import Method

SCRIPT = Path(__file__).with_name("plain_script.py").resolve()
GOAL_SPEED, GOAL_TRIALS = 1.5, 10.0

_SHIMS = {
    "deepspeed": '#!/bin/sh\nexec "{python}" -m deepspeed.launcher.runner "$@"\n',
    # pdsh -f FAN_OUT -w NODES COMMAND...: on this machine alone, whatever the command gives back.
    "pdsh": '#!/bin/sh\nshift 4\n"$@"\nexit 0\n',
}
_NUM_CONFIRMED, _NUM_WARM = 12, 4
"""Optimizer steps of the run again, and how many of them are not timed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Side:
    """What one side did in its minutes."""

    name: str
    minutes: float
    num_trials: int
    num_out_of_memory: int
    num_failed: int
    """For other reasons."""
    best: str
    best_tokens_per_second: float
    """As it says itself."""
    confirmed_tokens_per_second: float | None
    """Measured again, at the global batch of all."""
    seconds_to_best: float | None
    command: str

    @property
    def trials_per_minute(self) -> float:
        """Launched ones."""
        return self.num_trials / self.minutes


def peer(folder: Path, given: argparse.Namespace) -> Side:
    """DeepSpeed Autotuning until the minutes are over, then its best once more."""
    home = folder / "peer"
    shutil.rmtree(home, ignore_errors=True)
    home.mkdir()
    environment = _environment(home)
    _write_model(home, given.model)
    config: dict[str, Any] = {
        "optimizer": {"type": "AdamW", "params": {"lr": 1e-5}},
        "bf16": {"enabled": True},
        "zero_optimization": {"stage": "all"},
        "autotuning": {"enabled": True, "fast": True},
    }
    (home / "ds_config.json").write_text(json.dumps(config))
    command = [
        *("deepspeed", "--num_nodes", "1", "--num_gpus", "1", "--autotuning", "tune"),
        *(str(SCRIPT), "--model", str(home / "model.json"), "--seq-len", str(given.seq_len)),
        *("--deepspeed", "--deepspeed_config", "ds_config.json"),
    ]
    # What is compiled once per machine is compiled before anybody's minutes begin.
    one_step = config | {"train_micro_batch_size_per_gpu": 1, "zero_optimization": {"stage": 1}}
    del one_step["autotuning"]
    _time_steps(home, one_step, given, environment, num_steps=1)
    was_stopped = False
    started = time.time()
    with (home / "log.txt").open("w") as log:
        running = subprocess.Popen(
            command, cwd=home, env=environment, stdout=log, stderr=log, start_new_session=True
        )
        try:
            running.wait(60 * given.minutes)
        except subprocess.TimeoutExpired:
            was_stopped = True
            os.killpg(running.pid, signal.SIGKILL)
            running.wait()
    minutes = (time.time() - started) / 60
    found = list(_experiments(home / "autotuning_results", given.seq_len))
    if was_stopped and found[-1]["tokens_per_second"] is None:
        # What it was at when its minutes were over.
        found.pop()
    for line in found:
        line["seconds"] = line["ended"] - started
        print(line)
    fastest = max(found, key=lambda line: line["tokens_per_second"] or 0.0)
    return Side(
        name="DeepSpeed Autotuning",
        minutes=minutes,
        num_trials=len(found),
        num_out_of_memory=sum(line["is_out_of_memory"] for line in found),
        num_failed=sum(
            not line["is_out_of_memory"] and line["tokens_per_second"] is None for line in found
        ),
        best=fastest["name"],
        best_tokens_per_second=fastest["tokens_per_second"] or 0.0,
        confirmed_tokens_per_second=_again(home, fastest, given, environment),
        seconds_to_best=fastest["seconds"],
        command=" ".join(command),
    )


def _experiments(results: Path, seq_len: int) -> Iterator[dict[str, Any]]:
    """What it launched, the run that counts the model's memory among them, as they ended."""
    folders = [path.parent for path in results.glob("*/stderr.log")]
    for folder in sorted(folders, key=lambda path: (path / "stderr.log").stat().st_mtime):
        metrics = folder / "metrics.json"
        speed = None
        if metrics.exists():
            speed = json.loads(metrics.read_text())["throughput"] * seq_len
        logs = (folder / "stderr.log").read_text(errors="replace")
        ended = max(path.stat().st_mtime for path in folder.iterdir())
        is_out_of_memory = speed is None and "out of memory" in logs.lower()
        yield {
            "name": folder.name,
            "tokens_per_second": speed,
            "is_out_of_memory": is_out_of_memory,
            "ended": ended,
            "config": json.loads((folder / "ds_config.json").read_text()),
        }


def _again(
    home: Path, fastest: dict[str, Any], given: argparse.Namespace, environment: dict[str, str]
) -> float | None:
    """Tokens per second of its best configuration in the same script, with more steps."""
    config = {k: v for k, v in fastest["config"].items() if k != "autotuning"}
    micro_batch = config["train_micro_batch_size_per_gpu"]
    accumulation = max(1, round(given.global_batch / micro_batch))
    config["gradient_accumulation_steps"] = accumulation
    config["train_batch_size"] = micro_batch * accumulation
    times_s = _time_steps(home, config, given, environment, num_steps=_NUM_CONFIRMED)
    if not times_s:
        return None
    return float(config["train_batch_size"] * given.seq_len / median(times_s[_NUM_WARM:]))


def _time_steps(
    home: Path,
    config: dict[str, Any],
    given: argparse.Namespace,
    environment: dict[str, str],
    num_steps: int,
) -> list[float]:
    """Seconds of the script's optimizer steps; none where it failed."""
    (home / "again.json").write_text(json.dumps(config))
    times = home / "times.json"
    times.unlink(missing_ok=True)
    command = [
        *("deepspeed", "--num_gpus", "1", str(SCRIPT), "--model", str(home / "model.json")),
        *("--seq-len", str(given.seq_len), "--steps", str(num_steps), "--times", str(times)),
        *("--deepspeed", "--deepspeed_config", "again.json"),
    ]
    with (home / "again.txt").open("w") as log:
        subprocess.run(
            command, cwd=home, env=environment, stdout=log, stderr=log, timeout=180, check=False
        )
    return list(json.loads(times.read_text())) if times.exists() else []


def _environment(home: Path) -> dict[str, str]:
    """With the commands that the peer calls, where there are none."""
    shims = home / "bin"
    shims.mkdir()
    for name, text in _SHIMS.items():
        if shutil.which(name) is None:
            path = shims / name
            path.write_text(text.format(python=sys.executable))
            path.chmod(path.stat().st_mode | stat.S_IXUSR)
    environment = os.environ | {"PATH": f"{shims}:{os.environ['PATH']}"}
    if not _has_gpu():
        environment["DS_ACCELERATOR"] = "cpu"
    return environment


def _write_model(home: Path, model: str) -> None:
    (home / "model.json").write_text(json.dumps(dict(PRESETS[model].config)))


def search(folder: Path, given: argparse.Namespace) -> Side:
    """`autotune search` with its defaults."""
    command = [
        *("autotune", "search", "--model", given.model, "--seq-len", str(given.seq_len)),
        *("--global-batch", str(given.global_batch), "--budget", f"{60 * given.minutes:.0f}s"),
        *("--out", "autotune"),
    ]
    started = time.time()
    with (folder / "autotune.progress.txt").open("a") as progress:
        subprocess.run([sys.executable, "-m", *command], cwd=folder, stderr=progress, check=True)
    minutes = (time.time() - started) / 60
    told = json.loads(
        subprocess.run(
            [sys.executable, "-m", "autotune", "report", str(folder / "autotune"), "--json"],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
    )
    (folder / "autotune.report.json").write_text(json.dumps(told, indent=1))
    return _of_report(told, minutes, " ".join(command))


def _of_report(told: dict[str, Any], minutes: float, command: str) -> Side:
    """What its report says of the fastest that fits."""
    trials = {trial["number"]: trial for trial in told["trials"]}
    best = trials[told["picks"]["throughput"]]
    failed = [t for t in trials.values() if t["failure"] and t["state"] != "interrupted"]
    durations = {number: trial["duration_s"] or 0.0 for number, trial in trials.items()}
    # The start and all between trials is counted as if it came before the best.
    beside_s = 60 * minutes - sum(durations.values())
    to_best_s = sum(s for number, s in durations.items() if number <= best["number"])
    return Side(
        name="autotune",
        minutes=minutes,
        num_trials=told["num_launched"],
        num_out_of_memory=told["num_out_of_memory"],
        num_failed=len(failed) - told["num_out_of_memory"],
        best=f"trial {best['number']}: {best['strategy_in_words']}",
        best_tokens_per_second=best["measurement"]["tokens_per_second"],
        confirmed_tokens_per_second=best["throughput"]["mean"],
        seconds_to_best=beside_s + to_best_s,
        command=command,
    )


def by_hand(folder: Path, given: argparse.Namespace) -> Side:
    """The sweep of somebody who knows DeepSpeed."""
    out = folder / "by-hand.jsonl"
    started = time.time()
    record(_sweep(given), out, 60 * given.minutes)
    minutes = (time.time() - started) / 60
    lines = [line for line in read_records(out) if "outcome" in line]
    failures = [f["kind"] for line in lines if (f := line["outcome"]["failure"])]
    measured = [line for line in lines if line["outcome"]["measurement"]]
    fastest = max(measured, key=_tokens_per_second)
    out_of_memory = sum("memory" in kind for kind in failures)
    return Side(
        name="by hand",
        minutes=minutes,
        num_trials=len(lines),
        num_out_of_memory=out_of_memory,
        num_failed=len(failures) - out_of_memory,
        best=fastest["knobs"],
        best_tokens_per_second=_tokens_per_second(fastest),
        confirmed_tokens_per_second=_tokens_per_second(fastest),
        seconds_to_best=None,
        command="head_to_head.py by-hand",
    )


def _sweep(given: argparse.Namespace) -> Iterator[Case]:
    """Larger micro-batches first of all; a trial out of memory costs no more than another."""
    for size in (8, 16, 32, 4, 64, 2):
        for stage in (0, 1, 2, 3):
            for interval in (0, 1):
                knobs: dict[str, Any] = {
                    "zero_stage": stage,
                    "micro_batch_size": size,
                    "checkpoint_interval": interval,
                }
                words = ", ".join(f"{name} {value}" for name, value in knobs.items())
                yield Case(
                    key=words,
                    model=given.model,
                    method=Method.FULL,
                    seq_len=given.seq_len,
                    global_batch_size=given.global_batch,
                    knobs=knobs,
                    more={"knobs": words},
                )


def _tokens_per_second(line: dict[str, Any]) -> float:
    return float(line["outcome"]["measurement"]["tokens_per_second"])


def report(folder: Path) -> None:
    """The sides beside each other."""
    sides = [Side(**json.loads(path.read_text())) for path in sorted(folder.glob("side-*.json"))]
    named = {side.name: side for side in sides}
    print("| | tokens/s | measured again | trials | a minute | out of memory | best after |")
    print("|---|---|---|---|---|---|---|")
    for side in sides:
        again = side.confirmed_tokens_per_second
        print(
            f"| {side.name} | {side.best_tokens_per_second:,.0f} | "
            f"{f'{again:,.0f}' if again else 'failed'} | {side.num_trials} | "
            f"{side.trials_per_minute:.1f} | {side.num_out_of_memory} | "
            f"{f'{side.seconds_to_best:.0f} s' if side.seconds_to_best else ''} |"
        )
    for side in sides:
        print(f"\n{side.name}, {side.minutes:.1f} min: {side.best}\n    $ {side.command}")
    ours = named.get("autotune")
    for name, other in named.items():
        if ours is None or other is ours:
            continue
        speed = _best(ours) / _best(other)
        trials = ours.trials_per_minute / other.trials_per_minute
        print(f"\nautotune over {name}: {speed:.2f} x the tokens/s, {trials:.1f} x the trials/min")
    print(f"\nGoals against DeepSpeed Autotuning: {GOAL_SPEED} x and {GOAL_TRIALS:.0f} x.")


def _best(side: Side) -> float:
    return side.confirmed_tokens_per_second or side.best_tokens_per_second


def _has_gpu() -> bool:
    return detect_hardware().device_type is DeviceType.CUDA


def main(words: Sequence[str] | None = None) -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    sides = {"peer": peer, "autotune": search, "by-hand": by_hand}
    for name, run in sides.items():
        side = commands.add_parser(name, help=str(run.__doc__))
        side.add_argument("folder", type=Path)
        side.add_argument("--model", default="1.1B", choices=PRESETS)
        side.add_argument("--seq-len", type=int, default=1024)
        side.add_argument("--global-batch", type=int, default=128)
        side.add_argument("--minutes", type=float, default=8.0)
    reporting = commands.add_parser("report", help=str(report.__doc__))
    reporting.add_argument("folder", type=Path)
    given = parser.parse_args(words)
    if given.command == "report":
        report(given.folder)
        return
    if not _has_gpu():
        given.model, given.seq_len, given.global_batch = "tiny", 64, 16
    folder = given.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    side = sides[given.command](folder, given)
    (folder / f"side-{given.command}.json").write_text(json.dumps(asdict(side), indent=1))
    print(f"{side.name}: {side.best_tokens_per_second:,.0f} tokens/s, {side.num_trials} trials")


if __name__ == "__main__":
    main()
