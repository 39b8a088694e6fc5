"""Reads a training command as `deepspeed`, `torchrun`, `accelerate launch` or Python get it.

Each launcher's words are read by its own parser, so all its options are known. Its processes are
not started: ranks come from autotune.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any

from autotune.errors import ConfigError
from autotune.question.command import PROGRAM, CommandKind, TrainingCommand

__all__ = ["LaunchedCommand", "read_command"]

_PYTHON = re.compile(r"python[0-9.]*")

_PLAIN_FLAGS = ("-u", "-B")
"""Flags of Python that change nothing of a training."""

_MODULES_OF_SCRIPTS: Mapping[tuple[str, str], str] = {
    ("trl", "sft"): "trl.scripts.sft",
    ("trl", "dpo"): "trl.scripts.dpo",
    ("trl", "kto"): "trl.scripts.kto",
    ("trl", "reward"): "trl.scripts.reward",
    ("axolotl", "train"): "axolotl.cli.train",
    ("llamafactory-cli", "train"): "llamafactory.launcher",
}
"""Console scripts that start processes of their own, and what those run: by each one's command."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LaunchedCommand:
    """A training command, and the number of processes that its launcher was told."""

    command: TrainingCommand
    num_processes: int | None = None
    """None where its words do not say it, or say all devices."""


def read_command(words: Sequence[str], folder: Path) -> LaunchedCommand:
    """The training command that words stand for.

    Args:
        words: all that stands after `--`.
        folder: where the command is run.

    Raises:
        ConfigError: there is no such script, module or program, or a launcher's option is wrong.
    """
    words = TrainingCommand.checked_words(words)
    # A launcher may stand there with its path.
    launcher, rest = Path(words[0]).name, words[1:]
    if launcher == "deepspeed":
        return _of_deepspeed(rest, folder)
    if launcher == "torchrun":
        return _of_torchrun(rest, folder)
    if [launcher, *rest[:1]] == ["accelerate", "launch"]:
        return _of_accelerate(rest[1:], folder)
    if _PYTHON.fullmatch(launcher):
        while rest and rest[0] in _PLAIN_FLAGS:
            rest = rest[1:]
        if rest[:2] == ["-m", "torch.distributed.run"]:
            return _of_torchrun(rest[2:], folder)
        words = rest
        if not words:
            raise ConfigError(f"-- COMMAND: {launcher} needs a script, as {launcher} train.py")
    return LaunchedCommand(command=_of_program(words, folder))


def _of_program(words: Sequence[str], folder: Path) -> TrainingCommand:
    """A Python file, a module after -m, or a console script."""
    first = words[0]
    if first == "-m":
        if len(words) < 2:
            raise ConfigError("-- COMMAND: -m needs the name of a module")
        return _of_module(words[1], words[2:], folder)
    if first.startswith("-"):
        raise ConfigError(
            f"-- COMMAND: it starts with the option {first}; start with train.py, -m MODULE, a "
            "console script, deepspeed, torchrun or accelerate launch"
        )
    path = folder / first
    if path.suffix == ".py" or path.is_file():
        return _of_file(first, words[1:], folder)
    return _of_console_script(words, folder)


def _of_file(name: str, arguments: Sequence[str], folder: Path) -> TrainingCommand:
    path = folder / name
    if not path.is_file():
        what = "it is a folder" if path.is_dir() else "there is no such file"
        raise ConfigError(f"-- COMMAND: {name}: {what}")
    if not os.access(path, os.R_OK):
        raise ConfigError(f"-- COMMAND: {name} cannot be read")
    if path.suffix != ".py" and not _is_python(path):
        raise ConfigError(f"-- COMMAND: {name} is no Python program; give the script that it runs")
    return TrainingCommand(
        kind=CommandKind.FILE, target=name, arguments=tuple(arguments), folder=str(folder)
    )


def _is_python(path: Path) -> bool:
    """Whether the first line of a file without a suffix speaks for Python, or for nothing else."""
    with path.open("rb") as file:
        first = file.readline(1000)
    return b"\0" not in first and (not first.startswith(b"#!") or b"python" in first)


def _of_module(name: str, arguments: Sequence[str], folder: Path) -> TrainingCommand:
    if not all(part.isidentifier() for part in name.split(".")):
        raise ConfigError(f"-- COMMAND: -m {name}: this is no name of a module")
    if not _has_module(name, folder):
        raise ConfigError(f"-- COMMAND: -m {name}: no such module is installed or in {folder}")
    return TrainingCommand(
        kind=CommandKind.MODULE, target=name, arguments=tuple(arguments), folder=str(folder)
    )


def _has_module(name: str, folder: Path) -> bool:
    """Whether the top of a module's name can be found; its packages are not imported."""
    from importlib.machinery import PathFinder

    top = name.split(".", maxsplit=1)[0]
    return PathFinder.find_spec(top, [str(folder), *sys.path]) is not None


def _of_console_script(words: Sequence[str], folder: Path) -> TrainingCommand:
    name, *rest = words
    module = _MODULES_OF_SCRIPTS.get((name, rest[0])) if rest else None
    if module is not None and _has_module(module, folder):
        return _of_module(module, rest[1:], folder)
    points = metadata.entry_points(group="console_scripts", name=name)
    if not points:
        raise ConfigError(
            f"-- COMMAND: {name}: no such Python file, and no installed Python package has a "
            "console script of this name"
        )
    (point, *_) = points
    return TrainingCommand(
        kind=CommandKind.FUNCTION,
        target=f"{point.module}:{point.attr}",
        arguments=tuple(rest),
        folder=str(folder),
        environment={PROGRAM: name},
    )


def _of_deepspeed(words: Sequence[str], folder: Path) -> LaunchedCommand:
    from deepspeed.launcher.runner import parse_args

    read = _parsed("deepspeed", parse_args, words)
    if read.hostfile and Path(read.hostfile).is_file() and read.num_nodes != 1:
        raise ConfigError(
            f"-- COMMAND: deepspeed would use the hosts of {read.hostfile}; give --num_nodes 1, "
            "or search on several hosts with --ray"
        )
    command = _of_launched(read.user_script, read.user_args, folder, is_module=read.module)
    num = read.num_gpus if read.num_gpus and read.num_gpus > 0 else None
    if num is None and read.include and "@" not in read.include and ":" in read.include:
        num = len(read.include.split(":")[1].split(","))
    return LaunchedCommand(
        command=replace(command, passes_local_rank=not read.no_local_rank), num_processes=num
    )


def _of_torchrun(words: Sequence[str], folder: Path) -> LaunchedCommand:
    from torch.distributed.run import get_args_parser

    read = _parsed("torchrun", get_args_parser().parse_args, words)
    _refuse_nodes("torchrun", "--nnodes", read.nnodes)
    command = _of_launched(
        read.training_script, read.training_script_args, folder, is_module=read.module
    )
    num = int(read.nproc_per_node) if str(read.nproc_per_node).isdigit() else None
    is_told = any(word.startswith(("--nproc", "--nproc-per-node")) for word in words)
    return LaunchedCommand(command=command, num_processes=num if is_told else None)


def _of_accelerate(words: Sequence[str], folder: Path) -> LaunchedCommand:
    from accelerate.commands import launch
    from accelerate.utils import prepare_deepspeed_cmd_env, prepare_simple_launcher_cmd_env

    parser = launch.launch_command_parser()
    asked = _parsed("accelerate launch", parser.parse_args, words)
    _refuse_nodes("accelerate launch", "--num_machines", asked.num_machines)
    is_told = asked.num_processes is not None or asked.config_file is not None
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            read, defaults, _ = launch._validate_launch_command(asked)
            # As `launch_command` has it, before it starts a launcher.
            fields = ",".join(defaults.deepspeed_config) if defaults is not None else ""
            read.deepspeed_fields_from_accelerate_config = fields
            read.num_processes = read.num_processes or 1
            read.main_process_port, read.machine_rank = 0, 0
            with_engine, without = prepare_deepspeed_cmd_env, prepare_simple_launcher_cmd_env
            _, whole = (with_engine if read.use_deepspeed else without)(read)
    except (AttributeError, ConnectionError, OSError, TypeError, ValueError) as error:
        raise ConfigError(f"-- COMMAND: accelerate launch: {_first_line(error)}") from error
    _refuse_nodes("accelerate launch", "--num_machines", read.num_machines)
    command = _of_launched(
        read.training_script, read.training_script_args, folder, is_module=read.module
    )
    added = {
        name: value
        for name, value in whole.items()
        if os.environ.get(name) != value and not name.startswith(_OF_THIS_SHELL)
    }
    if read.use_deepspeed:
        added["ACCELERATE_USE_DEEPSPEED"] = "true"
    return LaunchedCommand(
        command=replace(command, environment=added),
        num_processes=read.num_processes if is_told else None,
    )


_OF_THIS_SHELL = ("MASTER_", "CUDA_", "PYTHONPATH")
"""Beginnings of variables that a launcher sets anew each time, from where it is started."""


def _of_launched(
    script: str, arguments: Sequence[str], folder: Path, *, is_module: bool
) -> TrainingCommand:
    if is_module:
        return _of_module(script, arguments, folder)
    return _of_program([script, *arguments], folder)


def _refuse_nodes(launcher: str, flag: str, nodes: object) -> None:
    if str(nodes or 1) not in ("1", "1:1"):
        raise ConfigError(
            f"-- COMMAND: {launcher} {flag} {nodes}: ranks are started by autotune; leave {flag} "
            "out, and search on several hosts with --ray"
        )


def _parsed(launcher: str, parse: Callable[[list[str]], Any], words: Sequence[str]) -> Any:
    """What a launcher's own parser makes of its words."""
    if not words:
        raise ConfigError(f"-- COMMAND: {launcher} needs a script, as {launcher} train.py")
    said = io.StringIO()
    try:
        with _quiet(said):
            return parse(list(words))
    except SystemExit:
        lines = [line for line in said.getvalue().splitlines() if line.strip()]
        reason = lines[-1].strip() if lines else "its words are not understood"
        raise ConfigError(f"-- COMMAND: {launcher}: {reason}") from None


@contextlib.contextmanager
def _quiet(said: io.StringIO) -> Iterator[None]:
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
        yield


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
