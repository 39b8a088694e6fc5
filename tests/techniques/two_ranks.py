"""Two ranks that a test spawns to look into engines: a trial's ranks report measurements only."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from autotune.machine.hardware import DeviceType
from autotune.trials.trial import TrialSpec
from autotune.worker.process_group import join
from autotune.worker.samples import micro_batch

NUM_RANKS = 2

Facts = dict[str, Any]
"""What was seen, plain enough for JSON."""

Look = Callable[[str, TrialSpec, int], Facts]
"""Trains a case, given its name, on a rank; defined at the top of a module, as it is pickled."""


def look_into(folder: Path, specs: Mapping[str, TrialSpec], look: Look) -> Facts:
    """What the first rank found in each case, by its name."""
    given = pickle.dumps(({name: spec.to_dict() for name, spec in specs.items()}, look))
    # Processes of their own: torch's `spawn` would leave a resource tracker below this one.
    ranks = [_start(folder, rank, given) for rank in range(NUM_RANKS)]
    try:
        while any(rank.poll() is None for rank in ranks) and not any(r.poll() for r in ranks):
            time.sleep(0.05)
    finally:
        for rank in ranks:
            rank.kill()
            rank.wait()
    errors = [(folder / f"rank{rank}.err").read_text()[-3000:] for rank in range(NUM_RANKS)]
    assert all(rank.returncode == 0 for rank in ranks), "\n".join(errors)
    facts: Facts = json.loads((folder / "facts.json").read_text())
    return facts


def _start(folder: Path, rank: int, given: bytes) -> subprocess.Popen[bytes]:
    places = {"LOCAL_RANK": str(rank), "RANK": str(rank), "WORLD_SIZE": str(NUM_RANKS)}
    (folder / f"rank{rank}.given").write_bytes(given)
    with (
        (folder / f"rank{rank}.given").open("rb") as stdin,
        (folder / f"rank{rank}.err").open("wb") as stderr,
    ):
        return subprocess.Popen(
            [sys.executable, "-c", "import two_ranks; two_ranks.main()", str(folder)],
            env=os.environ | places | {"PYTHONPATH": os.pathsep.join(sys.path)},
            stdin=stdin,
            stdout=stderr,
            stderr=stderr,
        )


def main() -> None:
    """One rank, which is given the cases and the function that looks on its standard input."""
    cases, look = pickle.load(sys.stdin.buffer)
    _rank(int(os.environ["RANK"]), sys.argv[1], cases, look)
    sys.stdout.flush()
    # As a trial's rank: destructors of process groups may hang.
    os._exit(0)


def _rank(rank: int, folder: str, cases: dict[str, Any], look: Look) -> None:
    import deepspeed

    torch.set_num_threads(1)
    # As in trials: all that is sent goes through gloo.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    join(Path(folder), rank=rank, num_ranks=NUM_RANKS, device_type=DeviceType.CPU)
    facts = {name: look(name, TrialSpec.from_dict(case), rank) for name, case in cases.items()}
    if rank == 0:
        Path(folder, "facts.json").write_text(json.dumps(facts))
    torch.distributed.barrier()


def tokens(spec: TrialSpec, rank: int, step: int, micro: int) -> torch.Tensor:
    """A micro-batch of the rank's own samples."""
    return micro_batch(spec, data_rank=rank, step=step, micro=micro)


def train_step(engine: Any, spec: TrialSpec, rank: int, step: int) -> float:
    """All micro-batches of one optimizer step; their mean loss over all ranks."""
    accumulation = spec.strategy.gradient_accumulation_steps(
        spec.workload.global_batch_size, NUM_RANKS
    )
    losses = []
    for micro in range(accumulation):
        ids = tokens(spec, rank, step, micro)
        loss = engine(input_ids=ids, labels=ids, use_cache=False).loss
        engine.backward(loss)
        engine.step()
        losses.append(loss.detach().float())
    mean = torch.stack(losses).mean()
    torch.distributed.all_reduce(mean)
    return float(mean) / NUM_RANKS
