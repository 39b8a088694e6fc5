"""One rank of one trial, from its fork to its last event."""

from __future__ import annotations

import faulthandler
import json
import signal
import textwrap
import traceback
from pathlib import Path

from autotune.trials.trial import TrialSpec
from autotune.worker.events import RankLog
from autotune.worker.failures import classify
from autotune.worker.script_errors import explained
from autotune.worker.script_training import ScriptTraining
from autotune.worker.training import Training

__all__ = ["run_rank"]

_MAX_MESSAGE_LENGTH = 160


def run_rank(spec_file: Path, folder: Path, rank: int) -> int:
    """Train, and write a `result` or a `failure` event; the process's exit status.

    Args:
        spec_file: a `TrialSpec` as JSON.
        folder: the trial's folder.
        rank: which rank this process is.
    """
    # The launcher sends SIGUSR1 before it kills a hung rank: where it hangs goes to the error log.
    faulthandler.enable()
    faulthandler.register(signal.SIGUSR1)
    log = RankLog(folder, rank)
    log.write("started")
    swap_folder = None
    try:
        spec = TrialSpec.from_dict(json.loads(spec_file.read_text(encoding="utf-8")))
        swap_folder = spec.nvme_path if spec.strategy.uses_nvme else None
        if spec.script is not None:
            ScriptTraining(spec, rank, folder, log).run()
        log.write("result", **Training(spec, rank, folder, log).run())
    except BaseException as error:  # the trial ends here, whatever it was
        traceback.print_exc()
        log.write(
            "failure",
            kind=classify(error, log.phase, swap_folder),
            phase=log.phase,
            message=explained(error) or _in_one_line(error),
        )
        return 1
    return 0


def _in_one_line(error: BaseException) -> str:
    """An exception's type and the beginning of its message; all of it is in the error log."""
    lines = str(error).strip().splitlines()
    message = f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
    return textwrap.shorten(message, _MAX_MESSAGE_LENGTH, placeholder=" …")
