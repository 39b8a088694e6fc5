"""Runs the plain script under DeepSpeed's launcher: once, or by its autotuner.

The autotuner needs more than DeepSpeed on one machine: `tabulate`; a `deepspeed` on the PATH, by
which it starts each experiment; a `pdsh` there, by which it ends what an experiment left running;
and an architecture that the extension builder can read. The first is checked, the others given.
Does not know what the sides of a comparison are.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from autotune.machine.extensions import readable_architectures
from autotune.machine.hardware import DeviceType, detect_hardware, visible_gpus
from autotune.question.presets import PRESETS

__all__ = ["SCRIPT", "Experiment", "autotune_by_deepspeed", "plain_config", "time_plain_steps"]

SCRIPT = Path(__file__).with_name("plain_script.py").resolve()

_SHIMS = {
    "deepspeed": '#!/bin/sh\nexec "{python}" -m deepspeed.launcher.runner "$@"\n',
    # What it would run is `pkill -f NAME` of an experiment that has ended. On one machine its
    # launcher has waited for all of it, and another's process may have the name in its arguments.
    "pdsh": "#!/bin/sh\nexit 0\n",
}
_LONGEST_PLAIN_RUN_S = 240
_END_S = 15
"""The launcher may take so long to end its processes before they are killed."""
_MOST_ON_CPU = 16
"""Micro-batch of the autotuner; it takes the host's memory for the device's."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Experiment:
    """One run of the script by the autotuner."""

    name: str
    tokens_per_second: float | None
    """As the autotuner has it: of its timers round three steps, at a batch of its own; None where
    it was not measured."""
    has_failed: bool
    is_out_of_memory: bool
    started_s: float
    """After the autotuner's own start."""
    ended_s: float
    config: Mapping[str, Any]
    """DeepSpeed's, as it ran."""


def plain_config(**more: Any) -> dict[str, Any]:
    """DeepSpeed's configuration as a user has it before any tuning."""
    return {
        "optimizer": {"type": "AdamW", "params": {"lr": 1e-5, "weight_decay": 0.0}},
        "bf16": {"enabled": True},
        "gradient_clipping": 1.0,
        **more,
    }


def autotune_by_deepspeed(
    home: Path, model: str, seq_len: int, minutes: float
) -> tuple[str, float, list[Experiment]]:
    """Its fast mode over all ZeRO stages, ended when the minutes are over.

    A folder in which it came to its end is only read again.

    Returns:
        Its command, the minutes it took, and its experiments as they started. The run in which it
        learns the size of the model is one of them; that which was cut off at the end is not.
    """
    for package in ("tabulate", "hjson"):
        if find_spec(package) is None:
            sys.exit(f"DeepSpeed's autotuner needs {package}: pip install {package}")
    ended = home / "ended.json"
    if not ended.exists():
        shutil.rmtree(home, ignore_errors=True)
        tuning: dict[str, Any] = {"enabled": True, "fast": True}
        if not _has_gpu():
            tuning["max_train_micro_batch_size_per_gpu"] = _MOST_ON_CPU
        config = plain_config(zero_optimization={"stage": "all"}, autotuning=tuning)
        words = ["--num_nodes", "1", "--num_gpus", "1", "--autotuning", "tune"]
        command = _command(home, words, model, seq_len, config, "ds_config.json")
        started = time.time()
        _run(command, home, log=home / "log.txt", seconds=60 * minutes)
        taken = {"command": command, "started": started, "minutes": (time.time() - started) / 60}
        ended.write_text(json.dumps(taken))
    taken = json.loads(ended.read_text())
    found = list(_experiments(home, seq_len, taken["started"]))
    (home / "experiments.json").write_text(json.dumps([asdict(e) for e in found], indent=1))
    words = [Path(word).name if "/" in word else word for word in taken["command"]]
    return " ".join(words), taken["minutes"], found


def time_plain_steps(
    home: Path,
    model: str,
    seq_len: int,
    config: Mapping[str, Any],
    more: tuple[str, ...] = (),
    *,
    num_steps: int,
) -> list[float]:
    """Seconds of the optimizer steps of the plain script; none where it failed.

    Args:
        home: where its files go.
        model: a preset.
        seq_len: tokens of a sample.
        config: DeepSpeed's.
        more: of the script's arguments.
        num_steps: so many.
    """
    times = home / "times.json"
    times.unlink(missing_ok=True)
    command = _command(home, ["--num_gpus", "1"], model, seq_len, config, "ds_config.json")
    command += ["--steps", str(num_steps), "--times", str(times), *more]
    _run(command, home, log=home / "log.txt", seconds=_LONGEST_PLAIN_RUN_S)
    return list(json.loads(times.read_text())) if times.exists() else []


def _command(
    home: Path,
    launcher: list[str],
    model: str,
    seq_len: int,
    config: Mapping[str, Any],
    config_name: str,
) -> list[str]:
    """The launch line, its two files written."""
    home.mkdir(parents=True, exist_ok=True)
    (home / "model.json").write_text(json.dumps(dict(PRESETS[model].config)))
    (home / config_name).write_text(json.dumps(config, indent=1))
    return [
        *("deepspeed", *launcher, str(SCRIPT), "--model", str(home / "model.json")),
        *("--seq-len", str(seq_len), "--deepspeed", "--deepspeed_config", config_name),
    ]


def _run(command: list[str], home: Path, *, log: Path, seconds: float) -> None:
    """Run it, and end it and all that it started when the seconds are over."""
    with log.open("w") as file:
        running = subprocess.Popen(
            command,
            cwd=home,
            env=_environment(home),
            stdout=file,
            stderr=file,
            start_new_session=True,
        )
        for sign, patience_s in ((signal.SIGTERM, seconds), (signal.SIGKILL, _END_S)):
            try:
                running.wait(patience_s)
                break
            except subprocess.TimeoutExpired:
                os.killpg(running.pid, sign)
        running.wait()
        # The launcher may have gone before what it started.
        try:
            time.sleep(1)
            os.killpg(running.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass


def _environment(home: Path) -> dict[str, str]:
    shims = home / "bin"
    shims.mkdir(exist_ok=True)
    for name, text in _SHIMS.items():
        (shims / name).write_text(text.format(python=sys.executable))
        (shims / name).chmod(0o755)
    # Beside Python lies ninja, where an environment is not activated.
    path = os.pathsep.join([str(shims), str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = os.environ | {"PATH": path}
    if not _has_gpu():
        return environment | {"DS_ACCELERATOR": "cpu"}
    named = ".".join(map(str, visible_gpus()[0].compute_capability))
    listed = readable_architectures(environment.get("TORCH_CUDA_ARCH_LIST") or named)
    return environment | {"TORCH_CUDA_ARCH_LIST": listed}


def _experiments(home: Path, seq_len: int, started: float) -> Iterator[Experiment]:
    ended = set(
        re.findall(r"Done running exp_id = \d+, exp_name = (\S+),", _text(home / "log.txt"))
    )
    folders = [path.parent for path in (home / "autotuning_results").glob("*/exp.json")]
    for folder in sorted(folders, key=lambda path: (path / "exp.json").stat().st_mtime):
        metrics, speed = _text(folder / "metrics.json"), None
        if metrics:
            speed = json.loads(metrics)["throughput"] * seq_len
        has_failed = not metrics and not (folder / "model_info.json").exists()
        if has_failed and folder.name not in ended:
            # It was running when the minutes were over.
            continue
        yield Experiment(
            name=folder.name,
            tokens_per_second=speed,
            has_failed=has_failed,
            is_out_of_memory=has_failed
            and "out of memory" in _text(folder / "stderr.log").lower(),
            started_s=(folder / "exp.json").stat().st_mtime - started,
            ended_s=max(path.stat().st_mtime for path in folder.iterdir()) - started,
            config=json.loads((folder / "ds_config.json").read_text()),
        )


def _text(path: Path) -> str:
    return path.read_text(errors="replace") if path.exists() else ""


def _has_gpu() -> bool:
    return detect_hardware().device_type is DeviceType.CUDA
