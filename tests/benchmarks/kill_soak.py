"""Kills everything that autotune starts, many times, and counts what is left of it.

    python tests/benchmarks/kill_soak.py [--kills 200] [--seed 0] [--side-by-side] [--out FILE]

Two lanes at a time, on two CPU ranks of the tiny model: one search whose ranks, server and driver
are killed and stopped while it goes on; and many short commands: plans and their tracers, exports,
answers of a finished search, measurements and builds. All are real processes and real signals. A
writer kills itself (SIGKILL) at one of the moments at which it opens, renames or makes a file of
its answer, or up to a millisecond later: such moments are too short to be met from outside.

Counted, by victim:
    lost        a launched trial without its row, a row that stays at running, a search that ends
                or does not go on, a command that fails after a child of it was killed
    doubled     a strategy with two ends of its own, or tried more than three times
    misjudged   a trial whose failure is blamed on its strategy
    orphaned    processes that live on
    half        a file or folder that is half written, a draft or a lock that stays, a study or an
                export that the same command cannot go on with
    temporary   files left in TMPDIR, or in /dev/shm

The choices follow from the seed; the moments at which processes come up do not.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import psutil

_MARK = "AUTOTUNE_KILL_SOAK"
_FAULTS = ("lost", "doubled", "misjudged", "orphaned", "half", "temporary")
_MACHINERY = {"lost_node", "interrupted", "communication"}

_SEARCH_VICTIMS = {
    "rank": 90,
    "server": 12,
    "server while it loads": 5,
    "driver of a search": 14,
    "driver, its server stopped": 4,
    "SIGSTOP of a rank": 6,
    "SIGSTOP of the server": 5,
}
_COMMAND_VICTIMS = {
    "tracer": 16,
    "driver of a plan": 14,
    "writer of an export": 24,
    "writer of an answer": 12,
    "driver of a measurement": 6,
    "driver of a build": 3,
}
_NUM_SIGKILLS = 200
"""Of all above but the two SIGSTOPs; `--kills` scales them."""

_SPACE = """
knobs:
  zero_stage: {values: [0, 1, 2, 3]}
  micro_batch_size: {values: [1, 2, 4]}
  checkpoint_interval: {values: [0, 1, 2, 4]}
  reduce_bucket_size: {values: [200000, 300000, 400000, 500000, 600000, 700000, 800000, 900000]}
"""

_QUESTION = (
    *("--model", "tiny", "--seq-len", "16", "--global-batch", "8"),
    *("--sampler", "grid", "--confirm", "0"),
)

_MODEL = {
    "model_type": "qwen2",
    "architectures": ["Qwen2ForCausalLM"],
    "vocab_size": 512,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
    "torch_dtype": "bfloat16",
}

_WRITER = """
import atexit, os, signal, sys, threading, time
root, count_file, left, delay_s = sys.argv[1], sys.argv[2], int(sys.argv[3]), float(sys.argv[4])
del sys.argv[1:5]
CHANGES = {"os.mkdir", "os.rename", "os.link", "os.remove", "os.rmdir", "os.chmod", "os.symlink"}
num_seen = 0

def writes(event, arguments):
    if event == "open":
        path, mode, flags = arguments
        changes = (set(mode or "") & set("wax+")) or (flags or 0) & (os.O_WRONLY | os.O_RDWR)
    else:
        path, changes = arguments[0] if arguments else None, event in CHANGES
    if not changes or isinstance(path, int) or path is None:
        return False
    return os.path.abspath(os.fsdecode(path)).startswith(root)

def die():
    time.sleep(delay_s)
    os.kill(os.getpid(), signal.SIGKILL)

def look(event, arguments):
    global num_seen
    if event in CHANGES or event == "open":
        if writes(event, arguments):
            num_seen += 1
            if num_seen == left:
                die() if delay_s == 0 else threading.Thread(target=die).start()

def tell():
    with open(count_file, "w") as file:
        file.write(str(num_seen))

atexit.register(tell)
sys.addaudithook(look)
from autotune.cli import main
main()
"""
"""Counts changes below a folder, and kills itself at one of them."""


class Tally:
    """What was killed, and what was found; safe for several threads."""

    def __init__(self, out: Path | None, header: str) -> None:
        self._out = out
        self._header = header
        self._lock = threading.Lock()
        self._started = time.monotonic()
        self.kills: Counter[str] = Counter()
        self._faults: Counter[tuple[str, str]] = Counter()
        self._details: list[str] = []

    @property
    def elapsed_s(self) -> float:
        """Since it was made."""
        return time.monotonic() - self._started

    @property
    def num_faults(self) -> int:
        """Of all kinds."""
        return sum(self._faults.values())

    def killed(self, victim: str) -> None:
        """One more."""
        with self._lock:
            self.kills[victim] += 1
            print(f"[{self.elapsed_s:5.0f} s] {victim}", flush=True)
            self._write()

    def fault(self, victim: str, kind: str, words: str) -> None:
        """Something is wrong after such a kill."""
        with self._lock:
            self._faults[victim, kind] += 1
            self._details.append(f"{kind} after {victim}: {words}")
            print(f"[{self.elapsed_s:5.0f} s] !! {self._details[-1]}", flush=True)
            self._write()

    def text(self) -> str:
        """The table by victim, and what was wrong."""
        victims = [*_SEARCH_VICTIMS, *_COMMAND_VICTIMS, "all at the end"]
        lines = [self._header, ""]
        lines.append(f"{'victim':<28}{'times':>6}" + "".join(f"{kind:>11}" for kind in _FAULTS))
        for victim in victims:
            counts = "".join(f"{self._faults[victim, kind]:>11}" for kind in _FAULTS)
            lines.append(f"{victim:<28}{self.kills[victim]:>6}{counts}")
        totals = (sum(self._faults[v, kind] for v in victims) for kind in _FAULTS)
        counts = "".join(f"{total:>11}" for total in totals)
        lines.append(f"{'together':<28}{sum(self.kills.values()):>6}{counts}")
        num_stops = sum(n for victim, n in self.kills.items() if victim.startswith("SIGSTOP"))
        num_kills = sum(self.kills.values()) - num_stops
        lines += ["", f"{num_kills} SIGKILLs, {num_stops} SIGSTOPs in {self.elapsed_s:.0f} s"]
        return "\n".join([*lines, *self._details]) + "\n"

    def _write(self) -> None:
        if self._out is not None:
            draft = self._out.with_suffix(".part")
            draft.write_text(self.text(), encoding="utf-8")
            draft.replace(self._out)


class Command:
    """One `autotune`, and all that is below it, told by a mark in their environment."""

    def __init__(self, room: Path, *arguments: str, code: str | None = None) -> None:
        self._mark = uuid.uuid4().hex
        program = ("-m", "autotune") if code is None else ("-c", code)
        self._log = room / "stderr.log"
        self._out = room / "stdout.log"
        with self._log.open("w") as log, self._out.open("w") as out:
            self.process = subprocess.Popen(
                [sys.executable, *program, *arguments],
                cwd=room,
                env=os.environ
                | {
                    _MARK: self._mark,
                    "TMPDIR": str(room / "tmp"),
                    "XDG_CACHE_HOME": str(room / "cache"),
                    "XDG_CONFIG_HOME": str(room / "config"),
                    "TORCHINDUCTOR_CACHE_DIR": str(room / "cache" / "inductor"),
                    "TORCH_EXTENSIONS_DIR": str(room / "cache" / "extensions"),
                    "DS_ACCELERATOR": "cpu",
                    "HF_HUB_OFFLINE": "1",
                },
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=log,
            )

    @property
    def is_running(self) -> bool:
        """Whether the command itself has not ended."""
        return self.process.poll() is None

    def words(self) -> str:
        """The end of what it said on stderr."""
        return self._log.read_text(errors="replace").strip()[-300:].replace("\n", " | ")

    def answer(self) -> str:
        """What it printed on stdout."""
        return self._out.read_text(errors="replace")

    def kill(self) -> None:
        """The command alone."""
        self.process.kill()
        self.process.wait()

    def below(self) -> list[psutil.Process]:
        """All living processes of it but the command itself."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error, OSError):
                is_ours = process.environ().get(_MARK) == self._mark
                is_itself = process.pid == self.process.pid
                if is_ours and not is_itself and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
        return found

    def children(self, module: str) -> list[psutil.Process]:
        """Its own children that run a module."""
        with contextlib.suppress(psutil.Error):
            children = psutil.Process(self.process.pid).children()
            return [child for child in children if _runs(child, module)]
        return []

    def orphans(self, wait_s: float) -> list[str]:
        """What does not descend from it after a while; killed, so that the soak can go on."""
        deadline = time.monotonic() + wait_s
        while (left := self._not_below()) and time.monotonic() < deadline:
            time.sleep(0.2)
        words = []
        for process in left:
            with contextlib.suppress(psutil.Error):
                words.append(" ".join(process.cmdline())[-80:])
                process.kill()
        return words

    def _not_below(self) -> list[psutil.Process]:
        left = []
        for process in self.below():
            with contextlib.suppress(psutil.Error):
                if self.process.pid not in {parent.pid for parent in process.parents()}:
                    left.append(process)
        return left


def _runs(process: psutil.Process, module: str) -> bool:
    with contextlib.suppress(psutil.Error):
        return module in process.cmdline()
    return False


def _wait_for(condition: Callable[[], Any], timeout_s: float) -> Any:
    """What the condition gives once it holds; None if it does not in time."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if found := condition():
            return found
        time.sleep(0.1)
    return None


def _room(folder: Path) -> Path:
    (folder / "tmp").mkdir(parents=True)
    return folder


class Lane:
    """A row of kills in a folder of its own."""

    def __init__(self, room: Path, tally: Tally, victims: Iterable[str], seed: int) -> None:
        self._room = _room(room)
        self._tally = tally
        self._random = random.Random(seed)
        self._victims = list(victims)
        self._random.shuffle(self._victims)

    def _check_below(self, command: Command, victim: str, wait_s: float = 10.0) -> None:
        for words in command.orphans(wait_s):
            self._tally.fault(victim, "orphaned", words)

    def _check_temporary(self, victim: str, wait_s: float = 10.0) -> None:
        folder = self._room / "tmp"

        def left() -> list[Path]:
            return list(folder.iterdir())

        _wait_for(lambda: not left(), wait_s)
        for path in left():
            self._tally.fault(victim, "temporary", path.name)
            shutil.rmtree(path) if path.is_dir() else path.unlink()


class SearchLane(Lane):
    """One search that is never left alone."""

    def __init__(
        self, room: Path, tally: Tally, victims: Iterable[str], seed: int, num_places: int
    ) -> None:
        super().__init__(room, tally, victims, seed)
        self._num_places = num_places
        (room / "space.yaml").write_text(_SPACE)
        self._study = room / "study"
        self._num_rank_kills = 0

    def run(self, most_s: float) -> None:
        """Kill one after the other; at the end interrupt the search and look at its record."""
        self._start()
        for victim in self._victims:
            if self._tally.elapsed_s > most_s:
                break
            if not self._strike(victim):
                continue
            self._tally.killed(victim)
            self._check_below(self._command, victim)
            if not self._command.is_running:
                self._tally.fault(victim, "lost", f"the search ended: {self._command.words()}")
                self._start()
            self._check_rows(victim)
        self._end()

    def _start(self) -> None:
        self._command = Command(
            self._room,
            *("search", *_QUESTION, "--space", "space.yaml", "--out", "study"),
            *("--min-gain", "0", "--budget", "2h", "--json"),
            *("--devices", "2", "--devices-per-trial", str(2 // self._num_places)),
        )

    def _strike(self, victim: str) -> bool:
        """Kill it; False where it never came up, which is told."""
        if victim.startswith("driver"):
            return self._strike_driver(victim)
        ranks = _wait_for(lambda: self._ranks() or not self._command.is_running, 120)
        if not ranks or ranks is True:
            words = self._command.words() if ranks else "no trial began within 120 s"
            self._tally.fault(victim, "lost", words)
            self._command.kill()
            self._start()
            return False
        if victim in ("rank", "SIGSTOP of a rank"):
            self._strike_rank(victim)
        else:
            self._strike_server(victim)
        return True

    def _strike_rank(self, victim: str) -> None:
        self._num_rank_kills += 1
        if self._num_rank_kills % 6 == 0:
            # Some come to their end, so that there is something to do twice.
            before = self._count("state in ('COMPLETE', 'PRUNED')")
            _wait_for(lambda: self._count("state in ('COMPLETE', 'PRUNED')") > before, 60)
        time.sleep(self._random.uniform(0.0, 1.5))
        choice = self._random.random()
        if ranks := _wait_for(self._ranks, 60):
            number = signal.SIGSTOP if victim.startswith("SIGSTOP") else signal.SIGKILL
            with contextlib.suppress(psutil.Error):
                ranks[int(choice * len(ranks))].send_signal(number)
            if number == signal.SIGSTOP:
                self._wait_for_end_of(ranks)

    def _strike_server(self, victim: str) -> None:
        time.sleep(self._random.uniform(0.0, 1.0))
        late_s = self._random.uniform(0.0, 4.0)
        servers = self._servers()
        number = signal.SIGSTOP if victim.startswith("SIGSTOP") else signal.SIGKILL
        for server in servers:
            with contextlib.suppress(psutil.Error):
                server.send_signal(number)
        self._wait_for_end_of(servers)
        if victim == "server while it loads":
            for server in _wait_for(self._servers, 30) or ():
                time.sleep(late_s)
                with contextlib.suppress(psutil.Error):
                    server.kill()

    def _wait_for_end_of(self, processes: list[psutil.Process]) -> None:
        _wait_for(lambda: not any(process.is_running() for process in processes), 60)

    def _strike_driver(self, victim: str) -> bool:
        if victim != "driver of a search":
            # One that is stopped while Python itself starts stays so: the kernel knows nothing.
            _wait_for(self._ranks, 120)
            for server in self._servers():
                with contextlib.suppress(psutil.Error):
                    server.suspend()
        else:
            time.sleep(self._random.uniform(0.0, 8.0))
        if not self._command.is_running:
            self._tally.fault(victim, "lost", self._command.words())
        self._command.kill()
        self._check_below(self._command, victim, 20.0)
        self._check_temporary(victim)
        self._check_files(victim)
        self._start()
        return True

    def _servers(self) -> list[psutil.Process]:
        return self._command.children("autotune.worker.server")

    def _ranks(self) -> list[psutil.Process]:
        found = []
        for server in self._servers():
            with contextlib.suppress(psutil.Error, ProcessLookupError):
                # A rank has a session of its own, which what looks at the processor has not.
                found += [c for c in server.children() if os.getpgid(c.pid) == c.pid]
        return found

    def _count(self, condition: str) -> int:
        with (
            contextlib.suppress(sqlite3.Error),
            contextlib.closing(
                sqlite3.connect(f"file:{self._study / 'study.db'}?mode=ro", uri=True)
            ) as database,
        ):
            [number] = database.execute(
                f"select count(*) from trials where {condition}"
            ).fetchone()
            return int(number)
        return 0

    def _check_rows(self, victim: str) -> None:
        # Those of a driver that was killed are told as soon as the next one begins.
        most = self._num_places
        if not _wait_for(lambda: self._count("state = 'RUNNING'") <= most, 60):
            self._tally.fault(victim, "lost", "rows stay at running")

    def _check_files(self, victim: str) -> None:
        for name in ("question.json", "environment.json"):
            path = self._study / name
            with contextlib.suppress(FileNotFoundError):
                try:
                    json.loads(path.read_text())
                except ValueError:
                    self._tally.fault(victim, "half", name)

    def _end(self) -> None:
        last = "all at the end"
        _wait_for(lambda: self._ranks() or not self._command.is_running, 120)
        self._command.process.terminate()
        try:
            status = self._command.process.wait(timeout=120)
        except subprocess.TimeoutExpired:
            self._tally.fault(last, "lost", "the search does not end")
            self._command.kill()
            return
        self._check_below(self._command, last)
        self._check_temporary(last)
        self._check_files(last)
        if status != 0:
            self._tally.fault(last, "lost", f"exit status {status}: {self._command.words()}")
            return
        self._check_record(json.loads(self._command.answer())["trials"])
        for path in (*self._study.glob("*.tmp"), *self._study.glob("trials/*/rendezvous")):
            self._tally.fault(last, "half", str(path.relative_to(self._study)))

    def _check_record(self, trials: list[dict[str, Any]]) -> None:
        last = "all at the end"
        rows = Counter(json.dumps(trial["strategy"], sort_keys=True) for trial in trials)
        launches: Counter[str] = Counter()
        for path in self._study.glob("trials/*/trial.json"):
            with contextlib.suppress(ValueError):
                spec = json.loads(path.read_text())
                launches[json.dumps(spec["strategy"], sort_keys=True)] += 1
        for strategy, number in launches.items():
            if number > rows[strategy]:
                self._tally.fault(last, "lost", f"launched {number} times: {strategy}")
        if running := self._count("state = 'RUNNING'"):
            self._tally.fault(last, "lost", f"{running} rows stay at running")
        ended = [t for t in trials if t["duration_s"] > 0 and t["failure"] is None]
        for strategy, number in Counter(
            json.dumps(t["strategy"], sort_keys=True) for t in ended
        ).items():
            if number > 1:
                self._tally.fault(last, "doubled", f"{number} ends of {strategy}")
        for strategy, number in rows.items():
            if number > 3:
                self._tally.fault(last, "doubled", f"tried {number} times: {strategy}")
        kinds = Counter(trial["failure"]["kind"] for trial in trials if trial["failure"])
        for kind in kinds.keys() - _MACHINERY:
            self._tally.fault(last, "misjudged", f"{kinds[kind]} times {kind}")
        print(f"record: {len(trials)} trials, {len(ended)} to their end, failures {dict(kinds)}")


class CommandLane(Lane):
    """Short commands, one after the other, each in a room of its own or in one that is kept."""

    def run(self, most_s: float) -> None:
        """Make a study, then kill whatever writes, plans, traces, measures and builds."""
        (self._room / "model").mkdir()
        (self._room / "model" / "config.json").write_text(json.dumps(_MODEL))
        self._make_study()
        self._num_moments = {what: self._count_moments(what) for what in ("export", "answer")}
        for victim in self._victims:
            if self._tally.elapsed_s > most_s:
                break
            strike = {
                "tracer": self._strike_tracer,
                "driver of a plan": self._strike_plan,
                "writer of an export": self._strike_writer,
                "writer of an answer": self._strike_writer,
                "driver of a measurement": self._strike_measurement,
                "driver of a build": self._strike_build,
            }[victim]
            if strike(victim):
                self._tally.killed(victim)
                self._check_temporary(victim)
        self._end()

    def _fail_unless_well(self, victim: str, kind: str, command: Command) -> None:
        if command.process.wait(timeout=300) != 0:
            self._tally.fault(victim, kind, command.words())

    def _make_study(self) -> None:
        command = Command(
            self._room,
            *("search", *_QUESTION, "--out", "study", "--trials", "2", "--budget", "5m"),
        )
        if command.process.wait(timeout=300) != 0:
            raise SystemExit(f"no study could be made: {command.words()}")
        # Kept for the sake of comparison: the files of a report and of an export that are whole.
        self._whole_report = (self._room / "study" / "report.txt").read_text()
        [export] = (self._room / "study" / "exports").iterdir()
        self._whole_export = {path.name: path.read_bytes() for path in export.iterdir()}
        self._number = export.name.removeprefix("trial-")

    # Writers.

    def _writer(self, what: str, moment: int, delay_s: float) -> Command:
        if what == "export":
            root = self._room / "exported"
            arguments = ("export", "study", "--trial", self._number, "--out", f"{root}/it")
        else:
            root = self._room / "study"
            arguments = ("search", *_QUESTION, "--out", "study", "--trials", "2", "--budget", "1s")
        root.mkdir(exist_ok=True)
        told = str(self._room / "moments")
        return Command(
            self._room, str(root), told, str(moment), str(delay_s), *arguments, code=_WRITER
        )

    def _forget(self, what: str) -> None:
        if what == "export":
            shutil.rmtree(self._room / "exported" / "it", ignore_errors=True)
        else:
            (self._room / "study" / "report.txt").unlink(missing_ok=True)
            shutil.rmtree(self._room / "study" / "exports", ignore_errors=True)

    def _count_moments(self, what: str) -> int:
        self._forget(what)
        command = self._writer(what, -1, 0.0)
        self._fail_unless_well(f"writer of an {what}", "half", command)
        return int((self._room / "moments").read_text())

    def _strike_writer(self, victim: str) -> bool:
        what = victim.removeprefix("writer of an ")
        moment = self._random.randint(1, max(1, self._num_moments[what]))
        delay_s = self._random.choice((0.0, self._random.uniform(0.0, 0.001)))
        if self._random.random() < 0.75:
            self._forget(what)
        command = self._writer(what, moment, delay_s)
        was_killed = command.process.wait(timeout=300) == -signal.SIGKILL
        if not was_killed and command.process.returncode != 0:
            self._tally.fault(victim, "half", f"refused: {command.words()}")
            self._forget(what)
        self._check_below(command, victim)
        self._check_writing(victim, what)
        return was_killed

    def _check_writing(self, victim: str, what: str) -> None:
        if what == "export":
            self._check_export(victim, self._room / "exported" / "it")
            return
        study = self._room / "study"
        for export in (study / "exports").glob("trial-*"):
            self._check_export(victim, export)
        for name in ("question.json", "environment.json"):
            try:
                json.loads((study / name).read_text())
            except ValueError:
                self._tally.fault(victim, "half", name)
        report = study / "report.txt"
        if report.exists():
            lines, whole = report.read_text().splitlines(), self._whole_report.splitlines()
            if lines[-1:] != whole[-1:] or len(lines) < len(whole) - 2:
                self._tally.fault(victim, "half", f"report.txt has {len(lines)} lines")

    def _check_export(self, victim: str, folder: Path) -> None:
        """It is there whole or not at all; the date is all that may differ."""
        if not folder.exists():
            return
        found = {path.name: path.read_bytes() for path in folder.iterdir()}
        dated = {"provenance.json", "README.md"}
        is_whole = found.keys() == self._whole_export.keys() and all(
            found[name] == data or (name in dated and len(found[name]) > 0.98 * len(data))
            for name, data in self._whole_export.items()
        )
        if not is_whole:
            self._tally.fault(victim, "half", f"export of {sorted(found)}")
            shutil.rmtree(folder)

    # Plans.

    def _plan(self) -> tuple[Path, Command]:
        """Where nothing was traced before, so that it traces."""
        shutil.rmtree(self._room / "plan", ignore_errors=True)
        room = _room(self._room / "plan")
        model = str(self._room / "model")
        return room, Command(room, "plan", "--model", model, "--hardware", "1xA100-80GB")

    def _strike_tracer(self, victim: str) -> bool:
        room, command = self._plan()
        late_s = self._random.uniform(0.0, 6.0)
        tracers = _wait_for(
            lambda: command.children("autotune.profile") or not command.is_running, 180
        )
        if tracers is True or not tracers:
            self._tally.fault(victim, "lost", f"no tracer came up: {command.words()}")
            return False
        time.sleep(late_s)
        was_killed = False
        for tracer in command.children("autotune.profile"):
            with contextlib.suppress(psutil.Error):
                tracer.kill()
                was_killed = True
        self._fail_unless_well(victim, "lost", command)
        self._check_below(command, victim)
        self._check_plan(victim, room)
        return was_killed

    def _strike_plan(self, victim: str) -> bool:
        room, command = self._plan()
        late_s = self._random.uniform(0.0, 6.0)
        if self._random.random() < 0.75:
            # While it traces, mostly.
            _wait_for(lambda: command.children("autotune.profile") or not command.is_running, 180)
        time.sleep(late_s)
        was_running = command.is_running
        command.kill()
        self._check_below(command, victim, 3.0)
        self._check_plan(victim, room)
        return was_running

    def _check_plan(self, victim: str, room: Path) -> None:
        for path in (room / "tmp").iterdir():
            self._tally.fault(victim, "temporary", path.name)
        for path in (room / "cache" / "autotune").rglob("*"):
            if path.is_file():
                try:
                    json.loads(path.read_text())
                except ValueError:
                    self._tally.fault(victim, "half", path.name)
                if path.suffix != ".json":
                    self._tally.fault(victim, "half", path.name)

    # What doctor starts.

    def _strike_measurement(self, victim: str) -> bool:
        disk = self._room / "disk"
        disk.mkdir(exist_ok=True)
        command = Command(self._room, "doctor", "--measure", "--nvme-path", "disk")
        _wait_for(
            lambda: command.children("autotune.doctor.measure.rank") or not command.is_running, 60
        )
        time.sleep(self._random.uniform(0.0, 12.0))
        was_running = command.is_running
        command.kill()
        self._check_below(command, victim)
        for path in disk.iterdir():
            self._tally.fault(victim, "temporary", path.name)
        return was_running

    def _strike_build(self, victim: str) -> bool:
        command = Command(self._room, "doctor", "--build")
        _wait_for(
            lambda: (
                any(_runs(p, "-c") or "ninja" in p.name() for p in _living(command))
                or not command.is_running
            ),
            90,
        )
        time.sleep(self._random.uniform(0.0, 3.0))
        was_running = command.is_running
        command.kill()
        self._check_below(command, victim)
        for lock in (self._room / "cache" / "extensions").glob("*/lock"):
            self._tally.fault(victim, "half", f"lock of {lock.parent.name}")
        return was_running

    def _end(self) -> None:
        """Whatever was killed, the same commands come to their end and leave nothing else."""
        last = "all at the end"
        for what in ("export", "answer"):
            self._fail_unless_well(last, "half", self._writer(what, -1, 0.0))
            self._check_writing(last, what)
        expected = {
            self._room / "exported": {"it"},
            self._room / "study" / "exports": {f"trial-{self._number}"},
        }
        for folder, names in expected.items():
            for name in {path.name for path in folder.iterdir()} - names:
                self._tally.fault(last, "half", f"{name} in {folder.name}")
        for path in (self._room / "study").glob("*.tmp"):
            self._tally.fault(last, "half", path.name)
        self._check_temporary(last)


def _living(command: Command) -> list[psutil.Process]:
    return [process for process in command.below() if process.is_running()]


def _scaled(victims: dict[str, int], share: float) -> list[str]:
    """Each at least once."""
    return [v for v, number in victims.items() for _ in range(max(1, round(number * share)))]


def _run(lane: Any, tally: Tally, asked: argparse.Namespace) -> None:
    """To its end; an error of the soak itself is no clean result either."""
    try:
        lane.run(asked.most_s)
    except BaseException as error:
        tally.fault("all at the end", "lost", f"the soak broke down: {error!r}")
        raise


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=_NUM_SIGKILLS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--most-s", type=float, default=1800.0, help="begin no kill after this")
    parser.add_argument(
        "--side-by-side", action="store_true", help="two trials at a time, of one rank each"
    )
    parser.add_argument("--out", type=Path, help="file for the table, written as it grows")
    asked = parser.parse_args()
    memory, load = psutil.virtual_memory().total / 2**30, os.getloadavg()[0]
    beside = " --side-by-side" if asked.side_by_side else ""
    header = (
        f"python tests/benchmarks/kill_soak.py --kills {asked.kills} --seed {asked.seed}{beside}\n"
        f"machine: {os.cpu_count()} cores ({platform.machine()}), {memory:.0f} GiB, "
        f"load {load:.1f} before it began"
    )
    print(header, flush=True)
    if asked.out is not None:
        asked.out.parent.mkdir(parents=True, exist_ok=True)
    tally = Tally(asked.out, header)
    share = asked.kills / _NUM_SIGKILLS
    shared_before = set(os.listdir("/dev/shm"))
    with tempfile.TemporaryDirectory() as name:
        lanes: list[Any] = [
            SearchLane(
                Path(name) / "search",
                tally,
                _scaled(_SEARCH_VICTIMS, share),
                asked.seed,
                num_places=2 if asked.side_by_side else 1,
            ),
            CommandLane(
                Path(name) / "commands", tally, _scaled(_COMMAND_VICTIMS, share), asked.seed + 1
            ),
        ]
        threads = [threading.Thread(target=_run, args=(lane, tally, asked)) for lane in lanes]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    for path in set(os.listdir("/dev/shm")) - shared_before:
        tally.fault("all at the end", "temporary", f"/dev/shm/{path}")
    text = tally.text()
    if asked.out is not None:
        asked.out.write_text(text, encoding="utf-8")
    print(text)
    return 1 if tally.num_faults else 0


if __name__ == "__main__":
    sys.exit(main())
