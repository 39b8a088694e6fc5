"""Kills ranks, workers, nodes and drivers, many times during one search, and checks the record.

    python tests/benchmarks/ray_soak.py [--kills 50] [--seed 0]

A Ray cluster of two nodes on this machine, real engines on their CPUs. What was launched is seen
from outside: each rank's standard output lies in a folder of its trial with `trial.json` in it. At
the end: every launch has its trial in the record, no strategy came to an end of its own twice, no
failure is blamed on memory or on the strategy, and neither process nor placement group is left.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import random
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import psutil

sys.path.insert(0, str(Path(__file__).parent.parent))
from command_line import autotune_process
from ray_nodes import RayNodes, is_rank, our_processes, ray_nodes, wait_until

_SPACE = """
knobs:
  zero_stage: {values: [0, 1, 2, 3]}
  micro_batch_size: {values: [1, 2, 4, 8]}
  checkpoint_interval: {values: [0, 1, 2, 4]}
  reduce_bucket_size: {values: [200000, 500000]}
"""
_KILLS_AN_END = 3
"""After so many kills a trial may come to its end, so that there is something to do twice."""

_INFRASTRUCTURE = {"lost_node", "interrupted", "communication"}


class LaunchLog:
    """What was launched, by looking at processes."""

    def __init__(self) -> None:
        self.strategies: dict[str, str] = {}
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        while not self._is_over.wait(0.25):
            for process in our_processes():
                with contextlib.suppress(psutil.Error, OSError, ValueError):
                    folder = Path(os.readlink(f"/proc/{process.pid}/fd/1")).parent
                    if str(folder) not in self.strategies and (folder / "trial.json").exists():
                        spec = json.loads((folder / "trial.json").read_text())
                        self.strategies[str(folder)] = json.dumps(spec["strategy"], sort_keys=True)

    def close(self) -> None:
        """Look no more."""
        self._is_over.set()
        self._thread.join()


class Soak:
    """One search and its killer."""

    def __init__(self, cluster: RayNodes, folder: Path, seed: int) -> None:
        self._cluster = cluster
        self._folder = folder
        self._random = random.Random(seed)
        self.kills: Counter[str] = Counter()
        self.num_resumed = 0
        self._arguments = (
            *("search", "--model", "tiny", "--seq-len", "32", "--global-batch", "32", "--json"),
            *("--space", "space.yaml", "--sampler", "grid", "--confirm", "0", "--out", "study"),
            *("--budget", "2h", "--ray", cluster.address),
        )
        (folder / "space.yaml").write_text(_SPACE)
        self.driver = autotune_process(*self._arguments, folder=folder)

    def kill_one(self) -> str | None:
        """Kill something while a trial runs; what it was, or None once the search has ended."""
        wait_until(lambda: self.driver.poll() is not None or self._ranks(), 180)
        if self.driver.poll() is not None:
            return None
        time.sleep(self._random.uniform(0.0, 1.5))
        what = self._random.choice(("rank", "worker", "node", "driver"))
        if what == "node":
            self._cluster.kill(self._random.choice(self._cluster.nodes))
            self._cluster.add()
        elif what == "driver":
            if self.driver.poll() is not None:
                return None
            self.driver.kill()
            self.driver.communicate()
            self.driver = autotune_process(*self._arguments, "--resume", folder=self._folder)
            self.num_resumed += 1
        else:
            victims = self._ranks() if what == "rank" else self._workers()
            if not victims:
                return ""
            with contextlib.suppress(psutil.Error):
                self._random.choice(victims).kill()
        self.kills[what] += 1
        return what

    def let_one_end(self, timeout_s: float = 120.0) -> None:
        """Leave the search alone until one more trial has come to an end of its own."""
        before = self._num_ended()
        with contextlib.suppress(AssertionError):
            wait_until(
                lambda: self.driver.poll() is not None or self._num_ended() > before, timeout_s
            )

    def _num_ended(self) -> int:
        path = self._folder / "study" / "study.db"
        if not path.exists():
            return 0
        query = "select count(*) from trials where state in ('COMPLETE', 'PRUNED')"
        with contextlib.suppress(sqlite3.Error), sqlite3.connect(path) as database:
            [number] = database.execute(query).fetchone()
            return int(number)
        return 0

    def _ranks(self) -> list[psutil.Process]:
        return [process for process in our_processes() if is_rank(process)]

    def _workers(self) -> list[psutil.Process]:
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process.cmdline()[:1] and process.cmdline()[0].startswith("ray::RayTrial"):
                    mark = process.environ().get("AUTOTUNE_TEST_RUN")
                    if mark == os.environ["AUTOTUNE_TEST_RUN"]:
                        found.append(process)
        return found


def _groups(address: str) -> set[str]:
    """The states of all placement groups, asked by another process."""
    code = (
        "import ray, sys; ray.init(address=sys.argv[1], logging_level='ERROR');"
        "from ray.util import placement_group_table as table;"
        "print(*{group['state'] for group in table().values()})"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code, address], capture_output=True, text=True, check=True
    )
    return set(ran.stdout.split())


def _check(
    trials: list[dict[str, Any]], launched: dict[str, str], running: int, states: set[str]
) -> list[str]:
    """What is wrong; empty where nothing is."""
    wrong = []
    rows = Counter(json.dumps(trial["strategy"], sort_keys=True) for trial in trials)
    for strategy, num in Counter(launched.values()).items():
        if num > rows[strategy]:
            wrong.append(f"lost: launched {num} times, {rows[strategy]} on record: {strategy}")
    ended = [t for t in trials if t["duration_s"] > 0 and t["failure"] is None]
    for strategy, num in Counter(json.dumps(t["strategy"], sort_keys=True) for t in ended).items():
        if num > 1:
            wrong.append(f"doubled: {num} ends of {strategy}")
    kinds = Counter(trial["failure"]["kind"] for trial in trials if trial["failure"])
    wrong += [
        f"misjudged: {n} x {kind}" for kind, n in kinds.items() if kind not in _INFRASTRUCTURE
    ]
    for strategy, num in rows.items():
        if num > 3:
            wrong.append(f"tried {num} times: {strategy}")
    if running:
        wrong.append(f"{running} trials are still running on record")
    if left := our_processes():
        wrong.append(f"{len(left)} processes are left")
    if states - {"REMOVED"}:
        wrong.append(f"placement groups are left: {states}")
    return wrong


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--most-s", type=float, default=3600.0, help="begin no kill after this")
    asked = parser.parse_args()
    print(f"python tests/benchmarks/ray_soak.py, asked: {vars(asked)}")
    memory, load = psutil.virtual_memory().total / 2**30, os.getloadavg()[0]
    cores = f"{os.cpu_count()} cores ({platform.machine()})"
    print(f"machine: {cores}, {memory:.0f} GiB, load {load:.1f} before it began")
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as name, ray_nodes(num_nodes=2) as cluster:
        log = LaunchLog()
        soak = Soak(cluster, Path(name), asked.seed)
        while sum(soak.kills.values()) < asked.kills and time.monotonic() - started < asked.most_s:
            what = soak.kill_one()
            if what is None:
                break
            print(f"[{time.monotonic() - started:6.0f} s] killed: {what}", flush=True)
            if sum(soak.kills.values()) % _KILLS_AN_END == 0:
                soak.let_one_end()
        # Ended as a user would, so that the record is whole: what runs is told as interrupted.
        if soak.driver.poll() is None:
            wait_until(lambda: soak.driver.poll() is not None or soak._ranks(), 180)
            soak.driver.terminate()
        stdout, stderr = soak.driver.communicate(timeout=120)
        log.close()
        with contextlib.suppress(AssertionError):
            wait_until(lambda: not our_processes(), 30)
        trials = json.loads(stdout)["trials"]
        with sqlite3.connect(Path(name) / "study" / "study.db") as database:
            query = "select count(*) from trials where state = 'RUNNING'"
            [running] = database.execute(query).fetchone()
        wrong = _check(trials, log.strategies, running, _groups(cluster.address))
    print(f"{time.monotonic() - started:.0f} s; killed: {dict(soak.kills)}")
    print(
        f"driver resumed {soak.num_resumed} times; its last exit status: {soak.driver.returncode}"
    )
    print(f"launches seen: {len(log.strategies)}; trials on record: {len(trials)}")
    states = Counter(trial["state"] for trial in trials)
    kinds = Counter(trial["failure"]["kind"] for trial in trials if trial["failure"])
    print(f"states: {dict(states)}; failures: {dict(kinds)}")
    print("\n".join(wrong) or "none lost, none doubled, none misjudged, nothing left")
    if wrong:
        print(stderr[-3000:], file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
