"""One contract over both views of a search, and what the live one draws."""

from __future__ import annotations

import io
import re
from dataclasses import replace

import pytest
from rich.console import Console
from sample_study import complete, failed, prediction, pruned

from autotune.cli.progress import LiveProgress, PlainProgress, describe_end
from autotune.drivers.budget import Budget
from autotune.space.strategy import Strategy
from autotune.trials.trial import FailureKind, Trial, TrialState

View = PlainProgress | LiveProgress

RUNNING = Trial(
    number=7,
    strategy=Strategy(zero_stage=3, micro_batch_size=8),
    state=TrialState.RUNNING,
    prediction=prediction(33.0),
)
STEP = {"event": "step", "index": 4, "is_timed": True, "time_s": 0.25}
ENDED = [
    complete(0, 1000.0, 10.0, predicted_gib=11.0),
    complete(1, 2500.0, 20.0, predicted_gib=22.0),
    failed(2, FailureKind.DEVICE_OUT_OF_MEMORY, "CUDA [out of] memory"),
    pruned(3, "predicted to need 90.0 GiB"),
]


class Screen:
    """A terminal or a pipe that keeps what was written."""

    def __init__(self, *, is_terminal: bool, width: int = 100) -> None:
        self._file = io.StringIO()
        self.console = Console(
            file=self._file, force_terminal=is_terminal, width=width, height=40, highlight=False
        )

    @property
    def raw(self) -> str:
        return self._file.getvalue()

    @property
    def text(self) -> str:
        """Without control sequences, line ends as spaces."""
        return " ".join(re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", self.raw).split())


@pytest.fixture(params=[PlainProgress, LiveProgress])
def kind(request: pytest.FixtureRequest) -> type[View]:
    view: type[View] = request.param
    return view


def show(kind: type[View], screen: Screen) -> None:
    """A search as a driver tells of it."""
    now = iter(range(10_000))
    budget = Budget(600.0, clock=lambda: float(next(now)))
    with kind(screen.console, budget) as view:
        view.note("libraries loaded")
        view.trials_changed([])
        for trial in ENDED:
            view.trials_changed(ENDED[: trial.number])
            if trial.was_launched:
                view.trial_started(trial)
                view.trial_event({"event": "ready", "setup_time_s": 1.5})
                view.trial_event(STEP)
                view.trial_event({"event": "something new"})
                view.refresh()
                view.trials_changed(ENDED[: trial.number + 1])
                view.trial_ended(trial)
        view.trials_changed([*ENDED, RUNNING])
        view.trial_started(RUNNING)
        view.trial_event(STEP)
        view.trials_changed([*ENDED, RUNNING])


def test_every_view_shows_notes_and_the_end_of_each_launched_trial(kind: type[View]) -> None:
    screen = Screen(is_terminal=kind is LiveProgress)
    show(kind, screen)
    assert "libraries loaded" in screen.text
    assert "in 10.0 GiB (pred. 1,000 tokens/s in 11.0 GiB)" in screen.text
    assert "device out of memory in forward: CUDA [out of] memory" in screen.text
    assert "pruned" in screen.text


def test_a_trial_that_ended_early_says_why_and_is_none_of_those_never_launched() -> None:
    screen = Screen(is_terminal=False)
    beaten = replace(complete(4, 500.0, 20.0), state=TrialState.PRUNED, reason="trial 1 is faster")
    with PlainProgress(screen.console, Budget(600.0)) as view:
        view.trials_changed([beaten])
        view.trial_ended(beaten)
    assert screen.text.endswith(f"trial 4: {beaten.strategy}: stopped early: trial 1 is faster")
    assert "without a launch" not in screen.text


def test_lines_in_a_pipe_carry_no_control_sequence_and_a_time_stamp_each() -> None:
    screen = Screen(is_terminal=False)
    show(PlainProgress, screen)
    assert "\x1b" not in screen.raw
    assert all(re.match(r"\[ *\d+\.\d s\] ", line) for line in screen.raw.splitlines())


def test_the_live_view_shows_budget_states_best_and_current_with_its_prediction() -> None:
    screen = Screen(is_terminal=True)
    show(LiveProgress, screen)
    assert re.search(r"\d:\d\d of 10:00 left", screen.text)
    assert "running 1 complete 2 pruned 1 failed 1" in screen.text
    best = f"best so far: {ENDED[1].strategy}: {describe_end(ENDED[1])}"
    assert best in screen.text
    expected = "pred. 1,000 tokens/s in 33.0 GiB"
    assert f"running 7: {RUNNING.strategy} ({expected}): step 5 (timed) 0.25 s" in screen.text


@pytest.mark.parametrize("width", [40, 60, 100])
def test_the_live_view_wipes_itself_and_hands_the_cursor_back(width: int) -> None:
    screen = Screen(is_terminal=True, width=width)
    show(LiveProgress, screen)
    assert screen.raw.count("\x1b[?25l") == screen.raw.count("\x1b[?25h") == 1
    # From the last frame to the end: as many lines are wiped as were drawn.
    frame, _, wiped = screen.raw.rpartition("\x1b[?25h")
    last_frame = frame.rpartition("\x1b[2K")[2]
    assert wiped.count("\x1b[1A\x1b[2K") == last_frame.count("\n")


def test_a_prediction_stands_beside_its_measurement() -> None:
    assert describe_end(ENDED[0]) == (
        "1,000 tokens/s in 10.0 GiB (pred. 1,000 tokens/s in 11.0 GiB)"
    )


def test_what_does_not_fit_says_so() -> None:
    assert describe_end(complete(0, 1.0, 77.0)).endswith("; does not fit: over the memory limit")
    thrashing = complete(0, 1.0, 1.0, num_alloc_retries=1)
    assert describe_end(thrashing).endswith("; does not count: the allocator flushed its cache")
