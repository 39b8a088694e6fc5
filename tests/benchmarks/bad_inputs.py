"""Runs 1,000 bad inputs against the real commands and counts how many break the rule.

The rule: one line on stderr that names the flag or the file, nothing on stdout, exit status 2, no
traceback, nothing written or left behind. What a mutation has left valid may pass, and where
nothing fits the exit status is 1. Where output goes decides nothing but what arrives.

    PYTHONPATH=. python tests/benchmarks/bad_inputs.py [--seed 0] [--only KIND ...] [--jobs 2]

autotune is taken from PYTHONPATH, so that another commit can be asked the same. Each case runs in
a process forked from one that has the imports behind it, with descriptors, a folder, a TMPDIR and
a configuration folder of its own; some are run once more by a new interpreter.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import io
import json
import math
import os
import random
import resource
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import psutil

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from stored_study import store_study

_CPU_S = 10
"""Of processor time for one case; what takes longer is a fault."""

_WALL_S = 120
_MEMORY_BYTES = 3 * 2**30
_SECRET = "hunter2"
_NUM_PROCESSES = 48
_MOST_PROCESSES = 12
"""That one case may start."""

_PR_SET_CHILD_SUBREAPER = 36
"""Of Linux, for prctl."""

_STUDY = "study"

_FEATURE_TYPES = (
    "llama", "opt", "gpt2", "mixtral", "qwen2", "gemma", "phi3", "falcon", "bloom", "t5", "bert"
)  # fmt: skip

Maker = Callable[[Path], None]


@dataclass(frozen=True, kw_only=True)
class Case:
    """One command with one bad input."""

    kind: str
    arguments: tuple[str, ...]
    files: Mapping[str, Maker] = field(default_factory=dict)
    """What lies in the folder beforehand: how to make it, by name."""
    named: tuple[str, ...] = ()
    """Words of which the message has to hold one."""
    may_pass: bool = False
    """Whether the input may be valid after all."""
    statuses: tuple[int, ...] = (2,)
    stdin: str = "null"
    stdout: str = "file"
    stderr: str = "file"
    encoding: str = "utf-8"


@dataclass(frozen=True, kw_only=True)
class Ended:
    """How a case ended."""

    status: int
    stdout: str
    stderr: str
    changes: tuple[str, ...]


# What lies in a case's folder


def text(content: str | bytes) -> Maker:
    data = content.encode("utf-8", "surrogatepass") if isinstance(content, str) else content
    return lambda path: _put(path, data)


def _put(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def folder(path: Path) -> None:
    path.mkdir(parents=True)


def fifo(path: Path) -> None:
    os.mkfifo(path)


def link(target: str) -> Maker:
    return lambda path: path.symlink_to(target)


def study_copy(changes: Mapping[str, Maker], template: Path) -> Maker:
    def make(path: Path) -> None:
        shutil.copytree(template, path)
        for name, maker in changes.items():
            with contextlib.suppress(OSError):
                (path / name).unlink()
            maker(path / name)

    return make


def database(*statements: str) -> Maker:
    def make(path: Path) -> None:
        with contextlib.closing(sqlite3.connect(path)) as connection, connection:
            for statement in statements:
                connection.execute(statement)

    return make


# Wrong values


def _deep(depth: int) -> Any:
    value: Any = 0
    for _ in range(depth):
        value = [value]
    return value


WRONG_VALUES: tuple[Any, ...] = (
    None, "", "text", "٣", "\x1b[31mred", "a\nb", [], {}, [[]], -1, 0, 1.5, True, False, 10**30,
    -(10**30), 1e308, math.nan, math.inf, "1" * 5000, [1, 2, 3], {"a": 1}, "${HOME}", 2**63, 1e-300
)  # fmt: skip


def mutations(rng: random.Random, document: Mapping[str, Any]) -> Iterator[Any]:
    """A document again and again, with one or two values removed, retyped or enlarged."""
    while True:
        copy = json.loads(json.dumps(document))
        for _ in range(rng.choice((1, 1, 2))):
            _mutate(rng, copy)
        yield copy


def _mutate(rng: random.Random, document: Any) -> None:
    where = document
    while True:
        keys = list(where) if isinstance(where, dict) else list(range(len(where)))
        if not keys:
            return
        key = rng.choice(keys)
        inner = where[key]
        if isinstance(inner, dict | list) and inner and rng.random() < 0.7:
            where = inner
            continue
        match rng.randrange(8):
            case 0:
                del where[key]
            case 1 if isinstance(where, dict):
                where[f"{key}{rng.choice(('', 's', '_', ' '))}x"] = where.pop(key)
            case 2:
                where[key] = _deep(rng.choice((3, 50, 300)))
            case _:
                where[key] = rng.choice(WRONG_VALUES)
        return


def odd_files(rng: random.Random, valid: str) -> Iterator[Maker]:
    """Files that are no document at all, or too much of one."""
    fixed: list[Maker] = [
        text(b""), text(b"\x00" * 4096), text(valid.encode("utf-16")), text("\ufeff" + valid),
        text(valid[: len(valid) // 2]), text("[" * 100_000), text('{"a":' * 50_000), text("null"),
        text("3"), text('"text"'), text("[]"), text("{}"), text(b"\xff\xfe\xfa"), folder, fifo,
        link("loop.x"), link("/dev/zero"), link("/dev/full"), link("nowhere"), text("NaN"),
        text("9" * 6000), text('{"a": 1, "a": 2}'), text(valid + valid), text(valid + "\x00"),
    ]  # fmt: skip
    while True:
        yield rng.choice(fixed)


def odd_yaml(rng: random.Random, valid: str) -> Iterator[Maker]:
    """The same of YAML."""
    laughs = "a0: &a0 [x, x]\n" + "".join(
        f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 10)
    )
    fixed = [
        text(laughs), text("a: &a [*a]\n"), text("&a {x: *a}\n"), text("a: " * 20_000),
        text("#" * 20_000_000), text("knobs:\n  zero_stage: [" + "1, " * 100_000 + "1]\n"),
        text("!!python/object/apply:os.system ['id']"), text("\ta: 1"), text("a: 1\na: 2\n"),
        text("? [a]\n: b\n"), text("a: *nowhere\n"), text("%YAML 9.9\n---\na: 1\n"),
        text("- " * 20_000), text("{" * 20_000), text(valid + "\n---\n" + valid),
        text("a: |\n" + " x\n" * 10),
    ]  # fmt: skip
    others = odd_files(rng, valid)
    while True:
        yield rng.choice(fixed) if rng.random() < 0.6 else next(others)


# Kinds of cases

SEARCH = ("search", "--model", "tiny", "--resume", "--out", "none")
PLAN = ("plan", "--model", "tiny", "--hardware", "8xH100-80GB", "--quick")

NO_INTEGERS = (
    "", "٣", "\uff11", "nan", "inf", "1e300", "-1", "9" * 20, "9" * 300, "9" * 5000, "1.5", "0x10",
    "one", "\udcff", "--", "1 2", "-9999999999999999999999"
)  # fmt: skip
NO_FLOATS = (
    "",
    "٣",
    "nan",
    "inf",
    "-inf",
    "1e300",
    "1e999",
    "-1",
    "-1e-300",
    "9" * 400,
    "x",
    "\udcff",
)
NO_DURATIONS = (
    "", "1h1h", "٣s", "1e3s", "-5m", "30m1h", "0s", "5", "s", "inf", "9" * 400 + "h", "1h ",
    "1,5h", "\udcff"
)  # fmt: skip
NO_WORDS = ("", " ", "x" * 5000, "a\nb", "\x1b[2J", "\udcff", "best", "THROUGHPUT ", "\u202e")
NO_PATHS = (
    "", "x" * 300, "x/" * 2500, "\udcff", "a\nb", "a\tb", "\x1b[2J", "/dev/null/x", "/proc/none/x"
)  # fmt: skip
NO_TARGETS = (
    "", ",", "all-linear,q_proj", "q_proj,q_proj", "all-linear,all-linear", "q", "q_proj,,",
    "\udcff"
)  # fmt: skip

_SHARED = {
    "--seq-len": NO_INTEGERS, "--global-batch": NO_INTEGERS, "--lora-rank": NO_INTEGERS,
    "--lora-targets": NO_TARGETS, "--method": NO_WORDS, "--headroom": NO_FLOATS,
    "--space": NO_PATHS, "--model": NO_PATHS,
}  # fmt: skip
OPTIONS: dict[str, dict[str, tuple[str, ...]]] = {
    "search": _SHARED
    | {
        "--budget": NO_DURATIONS, "--trial-timeout": NO_DURATIONS, "--objective": NO_WORDS,
        "--sampler": NO_WORDS, "--min-gain": NO_FLOATS, "--devices": NO_INTEGERS,
        "--devices-per-trial": NO_INTEGERS, "--trials": NO_INTEGERS, "--force-pruned": NO_INTEGERS,
        "--confirm": NO_INTEGERS, "--seed": NO_INTEGERS, "--nodes-per-trial": NO_INTEGERS,
        "--max-concurrent": NO_INTEGERS, "--nvme-path": NO_PATHS, "--out": NO_PATHS,
        "--reuse": NO_PATHS, "--device-kind": NO_WORDS,
    },
    "plan": _SHARED
    | {
        "--hardware": (
            *NO_PATHS, "8xH20", "4xL40", "99999999999999999999xH100", "0xH100", "-1xH100", "8x",
            "٣xH100", "9" * 5000 + "xH100"
        ),
        "--nodes": NO_INTEGERS, "--host-memory": NO_FLOATS, "--nvme": NO_FLOATS,
        "--calibrate-from": NO_PATHS, "--pick": NO_WORDS,
    },
    "report": {"--storage": NO_PATHS[:-2], "": NO_PATHS},
    "export": {
        "--trial": NO_INTEGERS, "--pick": NO_WORDS, "--storage": NO_PATHS[:-2], "": NO_PATHS
    },
    "doctor": {"--devices": NO_INTEGERS, "--nvme-path": NO_PATHS},
}  # fmt: skip


def option_cases(rng: random.Random, template: Path) -> Iterator[Case]:
    every = [
        (command, flag, value)
        for command, options in OPTIONS.items()
        for flag, values in options.items()
        for value in values
    ]
    rng.shuffle(every)
    for command, flag, value in every:
        base = {"search": SEARCH, "plan": PLAN, "doctor": ("doctor", "--measure")}
        arguments = list(base.get(command, (command, _STUDY)))
        named = (flag, flag.removeprefix("--"))
        if not flag:
            arguments[1], named = value, ("study", _shown(value))
        elif flag in arguments:
            arguments[arguments.index(flag) + 1] = value
        else:
            arguments.append(f"{flag}={value}")
        if flag == "--lora-targets" and rng.random() < 0.7:
            arguments += ["--method", "lora"]
        files = {_STUDY: study_copy({}, template)} if command in ("report", "export") else {}
        yield Case(kind="options", arguments=tuple(arguments), files=files, named=named)


def _shown(value: str) -> str:
    return value[:20] if value.isprintable() and value.strip() else "study"


def model_cases(rng: random.Random) -> Iterator[Case]:
    from transformers import AutoConfig

    configs = {}
    for name in _FEATURE_TYPES:
        config = json.loads(AutoConfig.for_model(name).to_json_string(use_diff=False))
        # Without what says nothing of the model's shape, a mutation hits the rest more often.
        dull = ("id2label", "label2id", "task_specific_params", "_name_or_path")
        configs[name] = {k: v for k, v in config.items() if k not in dull and v is not None}
    mutated = {name: mutations(rng, config) for name, config in configs.items()}
    odd = odd_files(rng, json.dumps(configs["llama"]))
    plan = ("plan", "--model", "m", "--hardware", "8xH100-80GB", "--quick")
    # Ends before anything runs, also where the model is fine: of many too large for a CPU.
    search = ("search", "--model", "m", "--resume", "--out", "none")
    while True:
        if rng.random() < 0.2:
            maker, may_pass = next(odd), True
        else:
            maker, may_pass = text(json.dumps(next(mutated[rng.choice(_FEATURE_TYPES)]))), True
        yield Case(
            kind="models",
            # A plan may trace the model, which takes a process with the libraries in it.
            arguments=plan if rng.random() < 0.15 else search,
            files={"m": folder, "m/config.json": maker},
            named=("--model", "m/config.json", "m:", "--resume"),
            may_pass=may_pass,
            statuses=(1, 2),
        )


HOST: dict[str, Any] = {
    "device": "MyGPU", "count": 8, "memory_gib": 96, "tflops": 400, "bandwidth_gb_per_s": 2000,
    "host_memory_gib": 1024, "nvme_gib": 4000, "nvme_path": "/local_nvme", "bf16": True,
    "fp8": False, "rates": {"matmul_tflops": 310, "memory_gb_per_s": 1700, "kernel_launch_us": 6},
}  # fmt: skip
SPACE: dict[str, Any] = {
    "knobs": {
        "zero_stage": [0, 1, 2, 3], "micro_batch_size": [1, 2, 4], "checkpoint_interval": [0, 1],
        "optimizer": ["adamw", "adamw_8bit"], "precision": ["bf16"], "offload_optimizer": ["none"],
        "reduce_bucket_size": [50000000],
    }
}  # fmt: skip


def yaml_cases(
    rng: random.Random, kind: str, valid: Mapping[str, Any], arguments: tuple[str, ...]
) -> Iterator[Case]:
    mutated, odd = mutations(rng, valid), odd_yaml(rng, json.dumps(valid))
    while True:
        is_odd = rng.random() < 0.35
        maker = next(odd) if is_odd else text(json.dumps(next(mutated), indent=1))
        yield Case(
            kind=kind,
            arguments=arguments,
            files={"f.yaml": maker},
            named=("f.yaml",),
            may_pass=True,
            statuses=(1, 2),
        )


def study_cases(rng: random.Random, kind: str, name: str, template: Path) -> Iterator[Case]:
    valid = json.loads((template / name).read_text(encoding="utf-8"))
    mutated, odd = mutations(rng, valid), odd_files(rng, json.dumps(valid))
    while True:
        maker = next(odd) if rng.random() < 0.3 else text(json.dumps(next(mutated)))
        command = rng.choice((("report",), ("report", "--json"), ("export",)))
        yield Case(
            kind=kind,
            arguments=(*command, _STUDY, *(("--out", "e") if command == ("export",) else ())),
            files={_STUDY: study_copy({name: maker}, template)},
            named=(_STUDY,),
            may_pass=True,
        )


def storage_cases(rng: random.Random, template: Path) -> Iterator[Case]:
    urls = (
        "nonsense", "sqlite:///nowhere/x.db", "sqlite:///noise.db", "sqlite:///foreign.db",
        "sqlite:///empty.db", "sqlite:///missing.db", "sqlite:///d", f"x://me:{_SECRET}@h/db",
        f"postgresql+psycopg://me:{_SECRET}@127.0.0.1:1/db", "://", f"a:{_SECRET}@b", "sqlite://",
        f"postgresql+psycopg://127.0.0.1:1/db?user=me&password={_SECRET}", "redis://127.0.0.1:1",
        f"postgresql+psycopg://me:{_SECRET}/x@127.0.0.1:1/db", "sqlite:///a\nb.db",
        f"postgresql+psycopg://me:{_SECRET}@127.0.0.1:1:2/db", "sqlite:///" + "x" * 300,
        f"postgresql+psycopg://me:{_SECRET}{{@127.0.0.1:1/db", f"mysql://me:{_SECRET}@h/db",
        f"postgresql+psycopg://me:@{_SECRET}@127.0.0.1:1/db", "postgresql+psycopg://h:port/db",
    )  # fmt: skip
    lying = {
        "noise.db": text(b"years of work" * 400),
        "foreign.db": database("CREATE TABLE thesis (chapter TEXT)"),
        "empty.db": text(b""),
        "d": folder,
    }
    # A new or an empty database is where a search may well begin.
    usable = ("sqlite:///foreign.db", "sqlite:///empty.db", "sqlite:///missing.db", "sqlite://")
    every = [
        (command, url)
        for command in ("search", "report", "export")
        for url in urls
        if command != "search" or url not in usable
    ]
    rng.shuffle(every)
    for command, url in every:
        asked = ("search", "--model", "tiny", "--budget", "1s") if command == "search" else ()
        files = {} if command == "search" else {_STUDY: study_copy({}, template)}
        yield Case(
            kind="storages",
            arguments=(*(asked or (command, _STUDY)), "--storage", url),
            files=lying | files,
            named=("storage",),
        )


def out_cases(rng: random.Random, template: Path) -> Iterator[Case]:
    outs = (
        "file", "file/x", "full", "full/..", ".", "..", "/proc/x", "/dev/full", "/dev/null/x",
        "loop", "to-file", "x" * 300, "x/" * 2100, "\udcff", "a\nb", "a\tb", "\x1b[2J", "",
        "/sys/x",
        "dangling",
    )  # fmt: skip
    lying: dict[str, Maker] = {
        "file": text("years of work"),
        "full": folder,
        "full/thesis.tex": text("years of work"),
        "loop": link("loop"),
        "to-file": link("file"),
        "dangling": link("/proc/none"),
    }
    every = [(command, out) for command in ("export", "plan", "search") for out in outs]
    rng.shuffle(every)
    for command, out in every:
        asked = {
            "export": ("export", _STUDY),
            "plan": PLAN,
            "search": ("search", "--model", "tiny", "--budget", "1s"),
        }[command]
        files = {_STUDY: study_copy({}, template)} if command == "export" else {}
        yield Case(
            kind="exports' --out",
            arguments=(*asked, "--out", out),
            files=lying | files,
            named=("--out",),
        )


def name_cases() -> Iterator[Case]:
    """Names of a study that are fine: it lies where it is said to."""
    for name in ("a%20b", "a?b", "a#b", "a{b}", "a b", "100%", "a&b", "a;b", "ä", "a'b"):
        yield Case(
            kind="names",
            arguments=("report", name),
            files={name: _study_if_it_can_be},
            statuses=(0,),
        )


def _study_if_it_can_be(path: Path) -> None:
    """A study by the code that is asked; where it cannot write one, the command will tell."""
    with contextlib.suppress(Exception):
        store_study(path)


def stream_cases(rng: random.Random, template: Path) -> Iterator[Case]:
    commands: dict[tuple[str, ...], int] = {
        ("--help",): 0,
        ("search", "--help"): 0,
        PLAN: 0,
        ("report", _STUDY): 0,
        ("report", _STUDY, "--json"): 0,
        ("export", _STUDY, "--out", "e"): 0,
        ("plan", "--model", "13b", "--hardware", "1xH100"): 2,
    }
    streams: tuple[dict[str, str], ...] = (
        {"stdout": "broken"}, {"stdout": "full"}, {"stderr": "full"}, {"stderr": "broken"},
        {"stdout": "closed"}, {"stderr": "closed"}, {"stdin": "closed"}, {"encoding": "ascii"},
        {"stdin": "closed", "stdout": "closed", "stderr": "closed"}, {"encoding": "latin-1"},
    )  # fmt: skip
    every = [(c, status, s) for c, status in commands.items() for s in streams]
    rng.shuffle(every)
    for arguments, status, stream in every:
        is_lost = stream.get("stdout") == "full" and status == 0
        yield Case(
            kind="streams",
            arguments=arguments,
            files={_STUDY: study_copy({}, template)},
            named=("stdout",) if is_lost else (),
            statuses=(1,) if is_lost else (status,),
            **stream,
        )


NUM_CASES = {
    "options": 300,
    "models": 120,
    "hardware files": 120,
    "space files": 120,
    "strategy files": 50,
    "question.json": 90,
    "environment.json": 30,
    "storages": 50,
    "exports' --out": 40,
    "names": 10,
    "streams": 70,
}


def all_cases(seed: int, template: Path, strategy: Mapping[str, Any]) -> list[Case]:
    """As many of each kind as `NUM_CASES` says."""

    def rng(kind: str) -> random.Random:
        return random.Random(f"{seed} {kind}")

    hardware = ("plan", "--model", "tiny", "--hardware", "f.yaml", "--quick")
    made = {
        "options": option_cases(rng("options"), template),
        "models": model_cases(rng("models")),
        "hardware files": yaml_cases(rng("hardware"), "hardware files", HOST, hardware),
        "space files": yaml_cases(
            rng("space"), "space files", SPACE, (*PLAN, "--space", "f.yaml")
        ),
        "strategy files": yaml_cases(
            rng("strategy"), "strategy files", strategy, ("read-strategy", "f.yaml")
        ),
        "question.json": study_cases(rng("question"), "question.json", "question.json", template),
        "environment.json": study_cases(
            rng("environment"), "environment.json", "environment.json", template
        ),
        "storages": storage_cases(rng("storages"), template),
        "exports' --out": out_cases(rng("outs"), template),
        "names": name_cases(),
        "streams": stream_cases(rng("streams"), template),
    }
    return [case for kind, number in NUM_CASES.items() for case in islice(made[kind], number)]


# Running a case


def _tree(where: Path) -> dict[str, tuple[str, int, int]]:
    found = {}
    for path in where.rglob("*"):
        status = path.lstat()
        kind = "folder" if path.is_dir() and not path.is_symlink() else "file"
        # A folder's time changes with a lock that comes and goes.
        found[str(path.relative_to(where))] = (
            (kind, status.st_size, status.st_mtime_ns) if kind == "file" else (kind, 0, 0)
        )
    return found


def _changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(
        sorted(
            name for name in before.keys() | after.keys() if before.get(name) != after.get(name)
        )
    )


def _environment(home: Path) -> dict[str, str]:
    (home / "tmp").mkdir(parents=True, exist_ok=True)
    return {
        "DS_ACCELERATOR": "cpu",
        "HF_HUB_OFFLINE": "1",
        "HOME": str(home),
        "TMPDIR": str(home / "tmp"),
        "XDG_CONFIG_HOME": str(home / ".config"),
        "XDG_CACHE_HOME": str(home / ".cache"),
    }


def _descriptor(what: str, path: Path, *, is_input: bool = False) -> int | None:
    """A stream's other end; None for one that is closed."""
    match what:
        case "closed":
            return None
        case "full":
            return os.open("/dev/full", os.O_WRONLY)
        case "broken":
            reader, writer = os.pipe()
            os.close(reader)
            return writer
        case "null":
            return os.open(os.devnull, os.O_RDONLY if is_input else os.O_WRONLY)
        case _:
            return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)


def _set_streams(case: Case, room: Path) -> None:
    ends = (
        _descriptor(case.stdin, room / "in", is_input=True),
        _descriptor(case.stdout, room / "out"),
        _descriptor(case.stderr, room / "err"),
    )
    # Out of the way of 0, 1 and 2 first.
    high = [None if end is None else os.dup2(end, 200 + fd) for fd, end in enumerate(ends)]
    for fd, end in enumerate(high):
        os.close(fd)
        if end is not None:
            os.dup2(end, fd)
            os.close(end)
    for end in ends:
        if end is not None and end > 2:
            os.close(end)


def _limit() -> None:
    resource.setrlimit(resource.RLIMIT_CPU, (_CPU_S, _CPU_S + 2))
    resource.setrlimit(resource.RLIMIT_DATA, (_MEMORY_BYTES, _MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _in_child(case: Case, room: Path) -> None:
    """Become the command: never returns."""
    status = 1
    try:
        os.setsid()
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        _set_streams(case, room)
        _limit()
        os.environ |= _environment(room / "home")
        tempfile.tempdir = None
        os.chdir(room / "work")
        for fd, name in ((1, "stdout"), (2, "stderr")):
            end = case.stdout if fd == 1 else case.stderr
            stream = None if end == "closed" else _text_stream(fd, case.encoding)
            setattr(sys, name, stream)
            setattr(sys, f"__{name}__", stream)
        sys.argv = ["autotune", *case.arguments]
        status = _status_of_main()
    except BaseException:
        import traceback

        with contextlib.suppress(Exception):
            traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            try:
                if stream is not None:
                    stream.flush()
            except Exception as error:
                status = 120
                with contextlib.suppress(Exception):
                    os.write(2, f"Traceback: {error}\n".encode())
        os._exit(status)


def _text_stream(fd: int, encoding: str) -> io.TextIOWrapper:
    errors = "backslashreplace" if fd == 2 else "strict"
    return io.TextIOWrapper(
        io.BufferedWriter(io.FileIO(fd, "w", closefd=False)), encoding=encoding, errors=errors
    )


def _status_of_main() -> int:
    if sys.argv[1] == "read-strategy":
        return _read_strategy(Path(sys.argv[2]))
    from autotune.cli import main

    try:
        main()
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    return 0


def _read_strategy(path: Path) -> int:
    """What `autotune.apply` does with a file, in the words of the command line."""
    from autotune.errors import AutotuneError
    from autotune.space.strategy_file import read_strategy_file

    try:
        read_strategy_file(path)
    except AutotuneError as error:
        print(f"autotune: {error}", file=sys.stderr)
        return 2
    return 0


def _prepare(case: Case, room: Path) -> dict[str, Any]:
    (room / "work").mkdir(parents=True)
    for name, make in case.files.items():
        make(room / "work" / name)
    (room / "home" / "tmp").mkdir(parents=True)
    return _tree(room)


def _ended(case: Case, room: Path, before: Mapping[str, Any], status: int) -> Ended:
    def read(name: str) -> str:
        with contextlib.suppress(OSError):
            return (room / name).read_bytes().decode("utf-8", "backslashreplace")
        return ""

    stdout, stderr = read("out"), read("err")
    for name in ("out", "err"):
        (room / name).unlink(missing_ok=True)
    return Ended(
        status=status, stdout=stdout, stderr=stderr, changes=_changes(before, _tree(room))
    )


def _become_subreaper() -> None:
    """Orphans of a case become children of this process, which ends them."""
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1)


def _end_if_too_many(pid: int) -> None:
    """A case that starts more processes than any input asks for is ended, with all of them."""
    with contextlib.suppress(psutil.Error):
        case = psutil.Process(pid)
        below = case.children(recursive=True)
        # Those that left its session have another parent by now.
        if len(below) > _MOST_PROCESSES or len(psutil.Process().children()) > 2 * _MOST_PROCESSES:
            for process in (case, *below):
                process.kill()


def _end_orphans(running: Mapping[int, Any]) -> None:
    """End what cases that are over have left behind."""
    for process in psutil.Process().children():
        if process.pid not in running:
            with contextlib.suppress(psutil.Error):
                for each in (*process.children(recursive=True), process):
                    each.kill()
                process.wait(5)


def run_forked(cases: list[Case], rooms: Path, num_jobs: int) -> list[Ended]:
    """Run all, so many at once; in the order of the cases."""
    ended: dict[int, Ended] = {}
    running: dict[int, tuple[int, float, dict[str, Any]]] = {}
    waiting = list(enumerate(cases))[::-1]
    while waiting or running:
        while waiting and len(running) < num_jobs:
            index, case = waiting.pop()
            before = _prepare(case, rooms / str(index))
            pid = os.fork()
            if pid == 0:
                _in_child(case, rooms / str(index))
            running[pid] = (index, time.monotonic(), before)
        pid, code = os.waitpid(-1, os.WNOHANG)
        if pid == 0:
            for late, (_, started, _) in running.items():
                if time.monotonic() - started > _WALL_S:
                    os.kill(late, signal.SIGKILL)
                elif time.monotonic() - started > 1:
                    _end_if_too_many(late)
            time.sleep(0.02)
            continue
        if pid not in running:
            continue
        index, _, before = running.pop(pid)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)
        _end_orphans(running)
        room = rooms / str(index)
        ended[index] = _ended(cases[index], room, before, os.waitstatus_to_exitcode(code))
        shutil.rmtree(room, ignore_errors=True)
    return [ended[index] for index in range(len(cases))]


def run_process(case: Case, room: Path) -> Ended:
    """The same by a new interpreter, its streams set by itself before Python starts."""
    before = _prepare(case, room)
    pid = os.fork()
    if pid == 0:
        try:
            os.setsid()
            _set_streams(case, room)
            os.chdir(room / "work")
            environment = os.environ | _environment(room / "home")
            if case.encoding != "utf-8":
                environment["PYTHONIOENCODING"] = case.encoding
            _limit()
            os.execve(
                sys.executable, [sys.executable, "-m", "autotune", *case.arguments], environment
            )
        finally:
            os._exit(127)
    deadline = time.monotonic() + _WALL_S
    while os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
        if time.monotonic() > deadline:
            os.kill(pid, signal.SIGKILL)
        time.sleep(0.02)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)
    _end_orphans({})
    return _ended(case, room, before, status)


# Judging it


def faults(case: Case, ended: Ended) -> list[str]:
    """In what a case ended otherwise than by the rule."""
    found = []
    if ended.status == -signal.SIGXCPU or ended.status == -signal.SIGKILL:
        return [f"over {_CPU_S} s of processor time, {_WALL_S} s or {_MOST_PROCESSES} processes"]
    if "Traceback" in ended.stderr or "Exception ignored" in ended.stderr:
        return ["traceback"]
    if _SECRET in ended.stdout + ended.stderr:
        found.append("secret shown")
    is_passed = case.may_pass and ended.status == 0
    if ended.status not in case.statuses and not is_passed:
        found.append(f"exit status {ended.status}")
    if case.kind == "streams":
        return found + _stream_faults(case, ended)
    if ended.status == 2:
        found += _message_faults(case, ended)
    if (
        ended.status == 1
        and 1 in case.statuses
        and not any(words in ended.stderr for words in ("Nothing fits", "sees no GPU"))
    ):
        found.append("exit status 1")
    is_written = ended.changes and not (is_passed and case.arguments[0] == "export")
    if is_written and case.kind != "streams":
        found.append("written: " + ", ".join(ended.changes[:3]))
    return found


def _message_faults(case: Case, ended: Ended) -> list[str]:
    found = []
    lines = ended.stderr.splitlines()
    if len(lines) != 1:
        found.append(f"{len(lines)} lines")
    if case.named and not any(word in ended.stderr for word in case.named):
        found.append("names neither flag nor file")
    if ended.stdout:
        found.append("stdout")
    if any(not c.isprintable() for line in lines for c in line):
        found.append("control characters")
    return found


def _stream_faults(case: Case, ended: Ended) -> list[str]:
    if case.stderr == "file" and case.named and case.named[0] not in ended.stderr:
        return ["does not say what was lost"]
    is_whole = case.stdout == "file" and 0 in case.statuses and not ended.stdout
    return ["no answer"] if is_whole else []


# The whole


def _strategy_of(template: Path, room: Path) -> dict[str, Any]:
    """The strategy file of an export of the study."""
    from ruamel.yaml import YAML

    command = [sys.executable, "-m", "autotune", "export", str(template), "--out", str(room / "e")]
    subprocess.run(command, check=True, capture_output=True)
    document = YAML(typ="safe").load((room / "e" / "strategy.yaml").read_text(encoding="utf-8"))
    plain: dict[str, Any] = json.loads(json.dumps(document))
    return plain


def _import_all() -> None:
    """What the commands import, before the first fork."""
    import importlib

    import optuna.storages
    import torch
    import transformers

    torch.set_num_threads(1)
    for name in (
        "cli",
        "cli.session",
        "cli.refusal",
        "nothing_fits.feasibility",
        "sites.this_machine",
        "plan.export",
        "plan.report",
        "answer.export",
    ):
        importlib.import_module(f"autotune.{name}")
    for name in _FEATURE_TYPES:
        with contextlib.suppress(Exception):
            importlib.import_module(f"transformers.models.{name}.modeling_{name}")
    # Both load much of themselves at the first use only.
    assert optuna.storages.RDBStorage
    assert transformers.AutoModelForCausalLM


def _print_table(judged: Mapping[str, list[list[str]]]) -> None:
    print(f"{'kind':18} {'cases':>6} {'otherwise':>10}   of them")
    for kind, each in judged.items():
        counts = Counter(_sort_of(fault) for found in each for fault in found[:1])
        words = ", ".join(f"{fault} {number}" for fault, number in counts.most_common())
        print(f"{kind:18} {len(each):6} {sum(map(bool, each)):10}   {words}")


def _sort_of(fault: str) -> str:
    return fault.partition(":")[0]


def _describe(case: Case, ended: Ended) -> str:
    arguments = " ".join(
        repr(a) if not a.isprintable() or " " in a or not a else a[:60] for a in case.arguments
    )
    last = ended.stderr.strip().splitlines()[-1:] or [""]
    streams = " ".join(
        f"{name}={getattr(case, name)}"
        for name, usual in (("stdin", "null"), ("stdout", "file"), ("stderr", "file"))
        if getattr(case, name) != usual
    )
    return f"{arguments[:160]} {streams} → {ended.status}: {last[0][:160]}"


def main() -> None:
    """Run, print by kind how many end otherwise, and list them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--only", nargs="+", help="kinds", choices=NUM_CASES)
    asked = parser.parse_args()
    started = time.monotonic()
    # Read when its library is imported: what is no folder would be asked for over the network.
    os.environ |= {"DS_ACCELERATOR": "cpu", "HF_HUB_OFFLINE": "1"}
    _import_all()
    _become_subreaper()
    import autotune

    with tempfile.TemporaryDirectory(prefix="bad-inputs-") as name:
        rooms = Path(name).resolve()
        template = store_study(rooms / "template" / _STUDY)
        cases = all_cases(asked.seed, template, _strategy_of(template, rooms))
        if asked.only:
            cases = [case for case in cases if case.kind in asked.only]
        print(
            f"{len(cases)} cases, seed {asked.seed}, {Path(autotune.__file__).parent}", flush=True
        )
        judged: dict[str, list[list[str]]] = {}
        for kind in dict.fromkeys(case.kind for case in cases):
            of_kind = [case for case in cases if case.kind == kind]
            ended = run_forked(of_kind, rooms / "forked", asked.jobs)
            judged[kind] = _judge(kind, of_kind, ended)
        plain = [case for case in cases if case.kind != "strategy files"]
        again = random.Random(asked.seed).sample(plain, min(_NUM_PROCESSES, len(plain)))
        ended = [run_process(case, rooms / "processes" / str(n)) for n, case in enumerate(again)]
        once_more = _judge("processes", again, ended)
    print()
    _print_table(judged | {"as processes": once_more})
    total = sum(bool(found) for each in judged.values() for found in each)
    seconds = time.monotonic() - started
    print(f"\n{total} of {len(cases)} end otherwise than by the rule; {seconds:.0f} s")


def _judge(kind: str, cases: list[Case], ended: list[Ended]) -> list[list[str]]:
    """The faults of each case; those that have any are listed."""
    print(f"\n{kind}")
    judged = [faults(case, end) for case, end in zip(cases, ended, strict=True)]
    for found, case, end in zip(judged, cases, ended, strict=True):
        if found:
            line = f"  {'; '.join(found)} | {_describe(case, end)}"
            shown = (c if c.isprintable() else f"\\u{ord(c):04x}" for c in line)
            print("".join(shown), flush=True)
    return judged


if __name__ == "__main__":
    main()
