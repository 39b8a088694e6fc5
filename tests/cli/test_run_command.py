"""`autotune run`: what it refuses, and how it ends."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from pathlib import Path

import pytest

from autotune.cli.run import _refuse_loop_of_ours, _status_of
from autotune.errors import ConfigError
from autotune.knob_values import Batching
from autotune.space.strategy import Strategy


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_whoever_ends_it_ends_the_ranks(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    ranks = subprocess.Popen(["sleep", "60"])
    threading.Timer(0.2, os.kill, (os.getpid(), number)).start()
    assert _status_of(ranks) == 128 + number
    assert signal.getsignal(number) is before


@pytest.mark.parametrize(
    "strategy",
    [
        Strategy(sequence_parallel_size=2),
        Strategy(tensor_parallel_size=2),
        Strategy(batching=Batching.PACKED),
    ],
)
def test_what_a_program_cannot_be_given_is_refused(strategy: Strategy) -> None:
    with pytest.raises(ConfigError, match=r"README\.md"):
        _refuse_loop_of_ours(Path("export"), strategy)
    _refuse_loop_of_ours(Path("export"), Strategy(batching=Batching.PADDING_FREE))
