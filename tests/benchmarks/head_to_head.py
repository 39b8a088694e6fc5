"""autotune against DeepSpeed Autotuning, and against tuning by hand, on the same machine.

    python tests/benchmarks/head_to_head.py prepare  FOLDER
    python tests/benchmarks/head_to_head.py by-hand  FOLDER [--minutes 8]
    python tests/benchmarks/head_to_head.py peer     FOLDER [--minutes 8]
    python tests/benchmarks/head_to_head.py autotune FOLDER [--minutes 8]
    python tests/benchmarks/head_to_head.py confirm  FOLDER
    python tests/benchmarks/head_to_head.py report   FOLDER

Run one after the other: all use the whole GPU. `prepare` writes the machine down and compiles what
is compiled once per machine, before anybody's minutes. Each side's minutes count from its
command's start. `confirm` runs the best of each side once more, in one and the same plain script
and as near to that global batch as its micro-batch divides it; the report compares these figures.
What has ended is not run again; `by-hand` and `confirm` go on where they were cut off, the others
begin anew. The question is Llama-1.1B at sequence 1024, global batch 128 (--model, --seq-len,
--global-batch), on one GPU. Without a GPU the tiny model takes its place.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from statistics import median
from typing import Any

from compared_sides import Side, read_sides, report
from deepspeed_launch import autotune_by_deepspeed, plain_config, time_plain_steps
from trial_recorder import SEQ_LEN_ON_CPU, Case, read_records, record

from autotune.machine.hardware import DeviceType, detect_hardware
from autotune.machine.software import detect_software
from autotune.question.presets import PRESETS
from autotune.question.workload import Method

_NUM_STEPS, _NUM_WARM = 13, 3
"""Optimizer steps of a confirmation, and how many of them are not timed."""
_LEAST_BY_HAND = 4


def prepare(folder: Path, given: argparse.Namespace) -> None:
    """Write the machine down, and compile what is compiled once per machine."""
    hardware, software = detect_hardware(), detect_software()
    if hardware.device_type is DeviceType.CUDA and hardware.num_devices > 1:
        sys.exit(f"this compares on one GPU, and there are {hardware.num_devices}")
    versions = software.versions | {
        name: metadata.version(name) for name in ("tabulate", "liger-kernel") if _has(name)
    }
    machine = {
        "device": str(hardware),
        "host_memory_gib": round(hardware.host_memory_bytes / 2**30, 1),
        "versions": versions,
        "model": given.model,
        "seq_len": given.seq_len,
        "global_batch": given.global_batch,
    }
    (folder / "machine.json").write_text(json.dumps(machine, indent=1))
    (folder / "doctor.txt").write_text(_autotune("doctor", "--build", check=False) + "\n")
    config = plain_config(train_micro_batch_size_per_gpu=1, zero_optimization={"stage": 1})
    home = folder / "prepare"
    if not time_plain_steps(home, given.model, given.seq_len, config, num_steps=1):
        sys.exit(f"the plain script does not run here:\n{(home / 'log.txt').read_text()[-3000:]}")


def peer(folder: Path, given: argparse.Namespace) -> Side:
    """DeepSpeed Autotuning until the minutes are over."""
    home = folder / "peer"
    command, minutes, found = autotune_by_deepspeed(
        home, given.model, given.seq_len, given.minutes
    )
    for one in found:
        print(one.name, one.tokens_per_second, "failed" if one.has_failed else "", flush=True)
    measured = [one for one in found if one.tokens_per_second is not None]
    if not measured:
        sys.exit(f"it measured nothing; see {home / 'log.txt'}")
    best = max(measured, key=lambda one: one.tokens_per_second or 0.0)
    num_out_of_memory = sum(one.is_out_of_memory for one in found)
    return Side(
        name="peer",
        command=command,
        minutes=minutes,
        num_trials=len(found),
        num_out_of_memory=num_out_of_memory,
        num_failed=sum(one.has_failed for one in found) - num_out_of_memory,
        best=best.name,
        best_tokens_per_second=best.tokens_per_second or 0.0,
        seconds_to_best=best.ended_s,
        config={key: value for key, value in best.config.items() if key != "autotuning"},
    )


def search(folder: Path, given: argparse.Namespace) -> Side:
    """`autotune search` with its defaults."""
    command = [
        *("autotune", "search", "--model", given.model, "--seq-len", str(given.seq_len)),
        *("--global-batch", str(given.global_batch), "--budget", f"{60 * given.minutes:.0f}s"),
        *("--devices", "1", "--out", "study"),
    ]
    # A study that was cut off would go on, with more minutes than the others have.
    shutil.rmtree(folder / "study", ignore_errors=True)
    progress = folder / "autotune.progress.txt"
    started = time.time()
    with progress.open("w") as file:
        subprocess.run([sys.executable, "-m", *command], cwd=folder, stderr=file, check=True)
    minutes = (time.time() - started) / 60
    told = json.loads(_autotune("report", str(folder / "study"), "--json"))
    (folder / "autotune.report.json").write_text(json.dumps(told, indent=1))
    trials = {trial["number"]: trial for trial in told["trials"]}
    best = trials[told["picks"]["throughput"]]
    exported = Path(_autotune("export", str(folder / "study"), "--trial", str(best["number"])))
    failed = [t for t in trials.values() if t["failure"] and t["state"] != "interrupted"]
    found = re.search(rf"\[ *([\d.]+) s\] trial {best['number']}: ", progress.read_text())
    return Side(
        name="autotune",
        command=" ".join(command),
        minutes=minutes,
        num_trials=told["num_launched"],
        num_out_of_memory=told["num_out_of_memory"],
        num_failed=len(failed) - told["num_out_of_memory"],
        best=f"trial {best['number']}: {best['strategy_in_words']}",
        best_tokens_per_second=best["throughput"]["mean"],
        seconds_to_best=float(found[1]) if found else 60 * minutes,
        config=json.loads((folder / exported / "ds_config.json").read_text()),
        arguments=("--strategy", str(folder / exported / "strategy.yaml")),
    )


def by_hand(folder: Path, given: argparse.Namespace) -> Side:
    """The sweep of somebody who knows DeepSpeed."""
    out = folder / "by-hand.jsonl"
    started = time.time()
    record(_sweep(given, out), out, 60 * given.minutes)
    minutes = (time.time() - started) / 60
    lines = [line for line in read_records(out) if "outcome" in line]
    failures = [f["kind"] for line in lines if (f := line["outcome"]["failure"])]
    measured = [line for line in lines if line["outcome"]["measurement"]]
    best = max(measured, key=_tokens_per_second)
    before = lines[: lines.index(best) + 1]
    num_out_of_memory = sum("out_of_memory" in kind for kind in failures)
    knobs = best["knobs"]
    size = knobs["micro_batch_size"]
    return Side(
        name="by-hand",
        command=f"head_to_head.py by-hand --minutes {given.minutes:g}",
        # A sweep that was cut off and went on took its trials' time at least.
        minutes=max(minutes, _seconds(lines) / 60),
        num_trials=len(lines),
        num_out_of_memory=num_out_of_memory,
        num_failed=len(failures) - num_out_of_memory,
        best=best["key"],
        best_tokens_per_second=_tokens_per_second(best),
        seconds_to_best=_seconds(before),
        config=plain_config(
            zero_optimization={"stage": knobs["zero_stage"]},
            train_batch_size=given.global_batch,
            train_micro_batch_size_per_gpu=size,
            gradient_accumulation_steps=given.global_batch // size,
        ),
        arguments=("--checkpointing",) if knobs["checkpoint_interval"] else (),
    )


def _sweep(given: argparse.Namespace, out: Path) -> Iterator[Case]:
    """Of each stage, with and without checkpoints, double the micro-batch until it fails."""
    for stage in (0, 1, 2, 3):
        for interval in (0, 1):
            size = _LEAST_BY_HAND
            while size <= given.global_batch:
                knobs = {
                    "zero_stage": stage,
                    "micro_batch_size": size,
                    "checkpoint_interval": interval,
                }
                key = ", ".join(f"{name} {value}" for name, value in knobs.items())
                yield Case(
                    key=key,
                    model=given.model,
                    method=Method.FULL,
                    seq_len=given.seq_len,
                    global_batch_size=given.global_batch,
                    knobs=knobs,
                    more={"knobs": knobs},
                    composes=True,
                )
                lines = {line["key"]: line for line in read_records(out)}
                if not lines[key].get("outcome", {}).get("measurement"):
                    break
                size *= 2


def confirm(folder: Path, given: argparse.Namespace) -> None:
    """Time the best of each side in the plain script, at the global batch."""
    for side in read_sides(folder):
        out = folder / f"confirmed-{side.name}.json"
        if out.exists():
            continue
        found: dict[str, Any] = {}
        # Accumulation takes memory: what was found at the edge may run only as it was found.
        for config in (_at_global_batch(side.config, given.global_batch), side.config):
            times_s = time_plain_steps(
                folder / f"confirm-{side.name}",
                given.model,
                given.seq_len,
                config,
                side.arguments,
                num_steps=_NUM_STEPS,
            )
            if times_s:
                tokens = config["train_batch_size"] * given.seq_len
                speed = tokens / median(times_s[_NUM_WARM:])
                found = {"tokens_per_second": speed, "step_times_s": times_s, "config": config}
                break
        out.write_text(json.dumps(found, indent=1))
        speed = found.get("tokens_per_second")
        print(f"{side.name}: {f'{speed:,.0f} tokens/s' if speed else 'failed'}", flush=True)


def _at_global_batch(config: dict[str, Any], global_batch: int) -> dict[str, Any]:
    """The same with as much accumulation as comes nearest, on one device."""
    size = config["train_micro_batch_size_per_gpu"]
    accumulation = max(1, round(global_batch / size))
    return config | {
        "gradient_accumulation_steps": accumulation,
        "train_batch_size": size * accumulation,
    }


def _tokens_per_second(line: dict[str, Any]) -> float:
    return float(line["outcome"]["measurement"]["tokens_per_second"])


def _seconds(lines: list[dict[str, Any]]) -> float:
    return float(sum(line["outcome"]["duration_s"] for line in lines))


def _autotune(*words: str, check: bool = True) -> str:
    command = [sys.executable, "-m", "autotune", *words]
    return subprocess.run(command, stdout=subprocess.PIPE, text=True, check=check).stdout.strip()


def _has(package: str) -> bool:
    try:
        metadata.version(package)
    except metadata.PackageNotFoundError:
        return False
    return True


def main(words: Sequence[str] | None = None) -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = {"prepare": prepare, "confirm": confirm}
    sides = {"peer": peer, "autotune": search, "by-hand": by_hand}
    parser.add_argument("command", choices=[*commands, *sides, "report"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", default="1.1B", choices=PRESETS)
    parser.add_argument("--seq-len", type=int, default=1024)
    parser.add_argument("--global-batch", type=int, default=128)
    parser.add_argument("--minutes", type=float, default=8.0)
    given = parser.parse_args(words)
    folder = given.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    if given.command == "report":
        report(folder)
        return
    if detect_hardware().device_type is not DeviceType.CUDA:
        given.model, given.seq_len, given.global_batch = "tiny", SEQ_LEN_ON_CPU, 16
    if given.command in commands:
        commands[given.command](folder, given)
        return
    out = folder / f"side-{given.command}.json"
    if out.exists():
        print(f"{given.command} has ended before; remove {out} to run it again")
        return
    side = sides[given.command](folder, given)
    out.write_text(json.dumps(asdict(side), indent=1))
    print(f"{side.name}: {side.best_tokens_per_second:,.0f} tokens/s, {side.num_trials} trials")


if __name__ == "__main__":
    main()
