"""Compares the sides of `head_to_head.py` on one machine with each other and with the goals.

Reads what each side left in the folder; runs nothing.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

__all__ = ["Side", "read_sides", "report"]

GOAL_SPEED, GOAL_TRIALS = 1.5, 10.0

FREE = {
    "peer": "DeepSpeed Autotuning, fast mode: ZeRO stage 0 to 3, micro-batch and "
    "accumulation, at a global batch of its own; every run in which it learned something is a "
    "trial, that of the model's size too; it was given a no-op `pdsh`, a `deepspeed` on the PATH, "
    "TORCH_CUDA_ARCH_LIST and its compiled Adam",
    "autotune": "`autotune search` with its default space: every knob in it leaves the loss as "
    "it is; among them fused kernels, tiles and finer checkpoints, which the peer does not have",
    "by-hand": "plain DeepSpeed: ZeRO stage, checkpointing on or off, and micro-batch doubled "
    "until memory runs out; run as autotune's warm trials, many times faster than scripts",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Side:
    """What one side did in its minutes."""

    name: str
    command: str
    minutes: float
    num_trials: int
    """Launched ones."""
    num_out_of_memory: int
    num_failed: int
    """For other reasons."""
    best: str
    best_tokens_per_second: float
    """As its own trials have it."""
    seconds_to_best: float
    config: dict[str, Any]
    """DeepSpeed's, of the best."""
    arguments: tuple[str, ...] = field(default=())
    """Of the plain script besides."""

    @property
    def trials_per_minute(self) -> float:
        """All launched ones, whether they came to a measurement or not."""
        return self.num_trials / self.minutes


def report(folder: Path) -> None:
    """The sides beside each other, as report.md and report.json."""
    machine = json.loads((folder / "machine.json").read_text())
    sides = {side.name: side for side in read_sides(folder)}
    again = {name: _confirmed(folder, name) for name in sides}
    told = {
        "machine": machine,
        "sides": {
            name: asdict(side)
            | {
                "trials_per_minute": side.trials_per_minute,
                "confirmed_tokens_per_second": again[name],
            }
            for name, side in sides.items()
        },
        "ratios": dict(_ratios(sides, again)),
        "goals": {"tokens_per_second": GOAL_SPEED, "trials_per_minute": GOAL_TRIALS},
    }
    (folder / "report.json").write_text(json.dumps(told, indent=1))
    words = "\n".join(_markdown(machine, sides, again, told["ratios"])) + "\n"
    (folder / "report.md").write_text(words)
    print(words)


def _ratios(
    sides: dict[str, Side], again: dict[str, float | None]
) -> Iterator[tuple[str, dict[str, float | None]]]:
    """autotune's over each other side's."""
    if (ours := sides.get("autotune")) is None:
        return
    for name, other in sides.items():
        mine, theirs = again["autotune"], again[name]
        if other is not ours:
            yield (
                name,
                {
                    "tokens_per_second": mine / theirs if mine and theirs else None,
                    "tokens_per_second_of_trials": ours.best_tokens_per_second
                    / other.best_tokens_per_second,
                    "trials_per_minute": ours.trials_per_minute / other.trials_per_minute,
                },
            )


def _markdown(
    machine: dict[str, Any],
    sides: dict[str, Side],
    again: dict[str, float | None],
    ratios: dict[str, dict[str, float | None]],
) -> Iterator[str]:
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    yield (
        f"{machine['device']}, {machine['host_memory_gib']} GiB host memory; {versions}. "
        f"{machine['model']}, sequence {machine['seq_len']}, "
        f"global batch {machine['global_batch']}."
    )
    yield ""
    yield (
        "| side | minutes | trials | a minute | out of memory | failed | best found after | "
        "tokens/s in its trials | tokens/s in the plain script |"
    )
    yield "|---|---|---|---|---|---|---|---|---|"
    for name, side in sides.items():
        speed = f"{found:,.0f}" if (found := again[name]) else "failed or not run"
        yield (
            f"| {name} | {side.minutes:.1f} | {side.num_trials} | {side.trials_per_minute:.2f} | "
            f"{side.num_out_of_memory} | {side.num_failed} | {side.seconds_to_best:.0f} s | "
            f"{side.best_tokens_per_second:,.0f} | {speed} |"
        )
    for name, ratio in ratios.items():
        shown = ", ".join(f"{key} {value:.2f}x" for key, value in ratio.items() if value)
        yield f"\nautotune over {name}: {shown}"
    yield f"\nGoals against the peer: {GOAL_SPEED:g}x tokens/s, {GOAL_TRIALS:g}x trials a minute."
    for name, side in sides.items():
        yield f"\n- {name}: free to choose: {FREE[name]}. Best: {side.best}.\n  `{side.command}`"


def read_sides(folder: Path) -> list[Side]:
    """Those that have ended."""
    return [Side(**json.loads(path.read_text())) for path in sorted(folder.glob("side-*.json"))]


def _confirmed(folder: Path, name: str) -> float | None:
    path = folder / f"confirmed-{name}.json"
    return json.loads(path.read_text()).get("tokens_per_second") if path.exists() else None
