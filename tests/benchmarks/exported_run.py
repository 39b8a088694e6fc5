"""Compares what an export promises with a user's run of it in a bare environment.

    python tests/benchmarks/exported_run.py EXPORT [EXPORT ...] [--steps 12] [--out RUNS.jsonl]

Writes a `train.py` beside a copy of each export, as its README shows it for plain DeepSpeed: a
model with random weights, random tokens of full length. Runs it twice, in an environment of PATH,
HOME and Python's path alone: by `sh launch.sh`, and by the launch line without the environment
that `launch.sh` sets. Prints tokens/s and reserved memory of both beside what was measured of the
trial. A line each, as it comes.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

from autotune.question.workload import load_model_shape

GIB = 2**30

_TRAIN = """
import json, sys, time

import deepspeed
import torch
from deepspeed.accelerator import get_accelerator
from transformers import AutoConfig, AutoModelForCausalLM

import autotune

values, seq_len, num_steps, dtype, attention = json.load(open("benchmark.json"))
deepspeed.init_distributed()
accelerator = get_accelerator()
device = torch.device(accelerator.device_name())
with device:
    model = AutoModelForCausalLM.from_config(
        AutoConfig.for_model(**values, use_cache=False),
        dtype=getattr(torch, dtype), attn_implementation=attention,
    )
model = autotune.apply(model, "strategy.yaml")
engine, *_ = deepspeed.initialize(
    model=model,
    model_parameters=[p for p in model.parameters() if p.requires_grad],
    optimizer=autotune.create_optimizer(model, "strategy.yaml"),
    config="ds_config.json",
)
engine.train()
size = (engine.train_micro_batch_size_per_gpu(), seq_len)
times_s = []
for _ in range(num_steps):
    accelerator.synchronize()
    started = time.perf_counter()
    for _ in range(engine.gradient_accumulation_steps()):
        tokens = torch.randint(0, values["vocab_size"], size, device=device)
        loss = engine(input_ids=tokens, labels=tokens).loss
        engine.backward(loss)
        engine.step()
    accelerator.synchronize()
    times_s.append(time.perf_counter() - started)
shown = {"times_s": times_s, "reserved": accelerator.max_memory_reserved() or 0,
         "allocated": accelerator.max_memory_allocated() or 0}
if torch.distributed.get_rank() == 0:
    print("SHOWN", json.dumps(shown), flush=True)
"""


def _bare_environment() -> dict[str, str]:
    """Of a shell that knows nothing of autotune."""
    kept = ("PATH", "HOME", "LD_LIBRARY_PATH", "PYTHONPATH", "TMPDIR")
    found = {name: os.environ[name] for name in kept if name in os.environ}
    return found | {"PATH": f"{Path(sys.executable).parent}:{found['PATH']}"}


def _launch_line(script: str) -> str:
    """The launch line of `launch.sh` alone, without what is set and exported before it."""
    line = next(line for line in script.splitlines() if "deepspeed" in line and "train.py" in line)
    return line[line.index("deepspeed") :].replace('"$@"', "")


def _run(command: list[str], folder: Path) -> dict[str, Any]:
    ran = subprocess.run(
        command,
        cwd=folder,
        env=_bare_environment(),
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    shown = [line for line in ran.stdout.splitlines() if "SHOWN" in line]
    if not shown:
        return {"failed": (ran.stderr or ran.stdout)[-600:]}
    found: dict[str, Any] = json.loads(shown[-1].partition("SHOWN ")[2])
    return found


def _compare(export: Path, num_steps: int) -> dict[str, Any]:
    provenance = json.loads((export / "provenance.json").read_text(encoding="utf-8"))
    workload, trial = provenance["workload"], provenance["trial"]
    strategy, measurement = trial["strategy"], trial["measurement"]
    tokens = workload["seq_len"] * workload["global_batch_size"]
    promised = {
        "tokens_per_second": trial["throughput"]["mean"]
        if "mean" in (trial.get("throughput") or {})
        else measurement["tokens_per_second"],
        "reserved_gib": measurement["peak_reserved_bytes"] / GIB,
    }
    runs: dict[str, Any] = {"export": export.name, "promised": promised}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / export.name
        shutil.copytree(export, folder)
        (folder / "train.py").write_text(_TRAIN, encoding="utf-8")
        shape = load_model_shape(workload["model"]["name"])
        dtype = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}[strategy["precision"]]
        settings = [shape.config, workload["seq_len"], num_steps, dtype, strategy["attention"]]
        (folder / "benchmark.json").write_text(json.dumps(settings), encoding="utf-8")
        script = (folder / "launch.sh").read_text(encoding="utf-8")
        prefix = "DS_ACCELERATOR=cpu " if "--num_accelerators" in script else ""
        ways = {
            "launch.sh": ["sh", "launch.sh"],
            "launch line alone": ["sh", "-c", prefix + _launch_line(script)],
        }
        for way, command in ways.items():
            shown = _run(command, folder)
            if "times_s" in shown:
                shown["tokens_per_second"] = tokens / median(shown["times_s"][3:])
                shown["reserved_gib"] = shown["reserved"] / GIB
            runs[way] = shown
    return runs


def main() -> None:
    """Run each export, and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("exports", type=Path, nargs="+")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    print(f"{'export':28}{'':20}{'tokens/s':>12}{'reserved GiB':>14}")
    for export in given.exports:
        runs = _compare(export, given.steps)
        for way in ("promised", "launch.sh", "launch line alone"):
            shown = runs[way]
            if "failed" in shown:
                print(f"{export.name:28}{way:20}failed: {shown['failed']}", flush=True)
                continue
            speed, reserved = shown["tokens_per_second"], shown["reserved_gib"]
            print(f"{export.name:28}{way:20}{speed:12,.0f}{reserved:14.2f}", flush=True)
        if given.out is not None:
            with given.out.open("a", encoding="utf-8") as file:
                file.write(json.dumps(runs) + "\n")


if __name__ == "__main__":
    main()
