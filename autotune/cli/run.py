"""`autotune run`: trains to the end with an exported strategy, by the user's own command."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from autotune.machine.hardware import Hardware
    from autotune.question.command import TrainingCommand
    from autotune.question.own_training import OwnTraining
    from autotune.space.strategy import Strategy

__all__ = ["EXAMPLES", "run"]

EXAMPLES = """\
Examples:
  autotune run results/train-1xH200/exports/trial-7
  autotune run my-export -- torchrun train.py --epochs 3 --deepspeed ds.json

Exit status: that of the training; 2 for wrong use."""
"""Shown below the options."""

_MODULE = "autotune.script.delivery"


def run(
    export: Annotated[Path, typer.Argument(help="An exported folder of a search.")],
    command: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[-- COMMAND]",
            help="Your training command, as for `autotune search`.",
            show_default="the command of the search",
        ),
    ] = None,
) -> None:
    """Train to the end with an exported strategy, by your own command.

    The program runs without a changed line: the strategy is put in where it calls DeepSpeed, as
    in the trials. Checkpoints, evaluation and logging are your own.
    """
    from autotune.space.strategy_file import read_strategy_file

    strategy = read_strategy_file(export / "strategy.yaml").strategy
    _refuse_loop_of_ours(export, strategy)
    config = _read(export / "ds_config.json")
    provenance = _read(export / "provenance.json")
    own = _own_training(provenance)
    hardware = _hardware(provenance)
    chosen = _chosen(export, command, own, hardware.num_devices)
    order = {
        "command": chosen.to_dict(),
        "strategy": strategy.to_dict(),
        "config": {name: value for name, value in config.items() if not name.startswith("_")},
        "config_file": str((export / "ds_config.json").resolve()),
        "is_predictable": own is None or own.is_predictable,
    }
    raise typer.Exit(_train(order, hardware, provenance))


def _refuse_loop_of_ours(export: Path, strategy: Strategy) -> None:
    """Refuse what a program cannot be given from outside: who shares a sample, and packing."""
    from autotune.errors import ConfigError
    from autotune.knob_values import PARALLEL_DEGREES, Batching

    names = [name for name in PARALLEL_DEGREES if getattr(strategy, name) > 1]
    if strategy.batching is Batching.PACKED:
        names.append("batching")
    if names:
        raise ConfigError(
            f"{export}: {names[0]} {getattr(strategy, names[0])} needs a training loop written "
            "for it; README.md of the export has one"
        )


def _chosen(
    export: Path, command: list[str] | None, own: OwnTraining | None, num_ranks: int
) -> TrainingCommand:
    """The command after `--`, or else that of the search.

    Raises:
        ConfigError: there is none, or it is for another number of processes.
    """
    from autotune.errors import ConfigError
    from autotune.script.launch_words import read_command

    if not command and own is None:
        raise ConfigError(
            f"{export}: its search ran no command of yours; give one, as "
            f"autotune run {export} -- train.py"
        )
    if own is not None and not command:
        return own.command
    launched = read_command(command or (), Path.cwd())
    if launched.num_processes not in (None, num_ranks):
        raise ConfigError(
            f"-- COMMAND: it starts {launched.num_processes} processes; {export} is for "
            f"{num_ranks}"
        )
    return launched.command


def _read(path: Path) -> dict[str, Any]:
    from autotune.errors import ConfigError
    from autotune.text_file import load_json

    try:
        read = load_json(path)
    except FileNotFoundError:
        raise ConfigError(
            f"{path.parent} is no export: it has no {path.name}; give a folder that "
            "autotune search or autotune export wrote"
        ) from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from error
    if not isinstance(read, dict):
        raise ConfigError(f"{path} is not what autotune wrote")
    return read


def _own_training(provenance: Mapping[str, Any]) -> OwnTraining | None:
    from autotune.question.own_training import OwnTraining

    record = provenance.get("own_training")
    return None if not isinstance(record, Mapping) else OwnTraining.from_dict(record)


def _hardware(provenance: Mapping[str, Any]) -> Hardware:
    """The export's hardware; as many devices must be here.

    Raises:
        ConfigError: the export does not say it, or there are fewer devices here.
    """
    from autotune.errors import ConfigError
    from autotune.machine.hardware import DeviceType, Hardware, visible_gpus

    record = provenance.get("hardware")
    try:
        hardware = Hardware.from_dict(record)  # type: ignore[arg-type]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ConfigError(f"provenance.json does not say the hardware: {error}") from error
    if hardware.num_nodes > 1:
        raise ConfigError(
            f"the export is for {hardware}, and autotune run starts ranks on one; launch.sh of "
            "the export starts them on each"
        )
    if hardware.device_type is DeviceType.CUDA and len(visible_gpus()) < hardware.num_devices:
        raise ConfigError(
            f"the export is for {hardware}, and {len(visible_gpus())} GPUs are visible here"
        )
    return hardware


def _train(order: Mapping[str, Any], hardware: Hardware, provenance: Mapping[str, Any]) -> int:
    """Start the ranks by torchrun, and wait; the exit status."""
    with tempfile.TemporaryDirectory(prefix="autotune-run-") as folder:
        file = Path(folder) / "order.json"
        file.write_text(json.dumps(order), encoding="utf-8")
        launcher = [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
            f"--nproc-per-node={hardware.num_devices}",
        ]
        ranks = subprocess.Popen(
            [*launcher, "-m", _MODULE, str(file)], env=_environment(hardware, provenance)
        )
        return _status_of(ranks)


def _status_of(ranks: subprocess.Popen[bytes]) -> int:
    """Wait for the ranks' launcher; its exit status, as a shell tells it."""

    def pass_on(number: int, frame: object) -> None:
        ranks.send_signal(number)

    # Else whoever ends this process would leave the ranks training.
    earlier = {each: signal.signal(each, pass_on) for each in (signal.SIGTERM, signal.SIGHUP)}
    try:
        while True:
            try:
                status = ranks.wait()
                return status if status >= 0 else 128 - status
            except KeyboardInterrupt:
                # The terminal has told the ranks too; they end in their own way.
                continue
    finally:
        for number, handler in earlier.items():
            signal.signal(number, handler)


def _environment(hardware: Hardware, provenance: Mapping[str, Any]) -> dict[str, str]:
    """The user's own environment, and what trials had where it says nothing."""
    from autotune.launch.rank_environment import training_settings
    from autotune.machine.settings import ALLOCATOR_NAMES, settings_in

    recorded = provenance.get("environment", {}).get("variables", {})
    plain = {str(name): str(value) for name, value in dict(recorded).items()}
    cores = max(1, (os.cpu_count() or 1) // hardware.devices_per_node)
    settings = training_settings(hardware.device_type, os.environ, cores=cores)
    told = settings_in(plain)
    if any(name in os.environ for name in ALLOCATOR_NAMES):
        told = {name: value for name, value in told.items() if name not in ALLOCATOR_NAMES}
    return settings | told | dict(os.environ)
