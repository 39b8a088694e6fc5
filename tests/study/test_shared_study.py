"""Several searches on one study at once, in a real PostgreSQL server."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from command_line import autotune, autotune_process
from postgresql import postgresql_server
from sample_study import complete, prediction

from autotune.space.strategy import Strategy
from autotune.study.record import TrialRecord
from autotune.trials.trial import Failure, FailureKind, Outcome, TrialState

pytestmark = pytest.mark.slow

_SIZES = tuple(range(1, 25))


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with postgresql_server() as url:
        yield url


_OPENED: list[TrialRecord] = []


@pytest.fixture(autouse=True)
def closed() -> Iterator[None]:
    """Leave no connection open."""
    yield
    while _OPENED:
        _OPENED.pop().close()


def open_record(url: str, owner: str, name: str = "study") -> TrialRecord:
    record = TrialRecord(
        url,
        name,
        owner=owner,
        choices={"micro_batch_size": _SIZES},
        memory_limit_bytes=76 * 2**30,
        is_shared=True,
    )
    _OPENED.append(record)
    return record


def _claim_all(url: str, owner: str, begin_at: float) -> None:
    """Another process's search: every strategy at once, in the same order as everybody."""
    time.sleep(max(0.0, begin_at - time.time()))
    record = open_record(url, owner, "rush")
    for size in _SIZES:
        trial = record.claim(Strategy(micro_batch_size=size), prediction(1.0))
        if trial is not None:
            measured = complete(trial.number, 1000.0, 1.0).measurement
            record.finish(trial, Outcome(measurement=measured, duration_s=1.0))


_CLAIM_ALL = """
import sys, test_shared_study
url, owner, begin_at = sys.argv[1:]
test_shared_study._claim_all(url, owner, float(begin_at))
"""


def test_searches_that_rush_for_the_same_strategies_share_them_out(server: str) -> None:
    # The first test of this file: the database has no tables yet, and all want to make them.
    begin_at = time.time() + 8.0
    # Plain processes: `multiprocessing` would leave a resource tracker below this one.
    searches = [
        subprocess.Popen(
            [sys.executable, "-c", _CLAIM_ALL, server, f"search {number}", str(begin_at)],
            env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        )
        for number in range(4)
    ]
    assert [search.wait() for search in searches] == [0] * 4
    trials = open_record(server, "here", "rush").trials()
    assert Counter(t.strategy.micro_batch_size for t in trials) == dict.fromkeys(_SIZES, 1)
    assert {trial.state for trial in trials} == {TrialState.COMPLETE}


def test_a_strategy_that_another_search_has_is_not_claimed(server: str) -> None:
    here, there = open_record(server, "here", "one"), open_record(server, "there", "one")
    strategy = Strategy(micro_batch_size=2)
    running = there.claim(strategy, prediction(1.0))
    assert running is not None
    assert here.claim(strategy, prediction(1.0)) is None
    assert here.trials() == there.trials() == [running]


def test_a_strategy_whose_trial_was_lost_may_be_claimed_again(server: str) -> None:
    here, there = open_record(server, "here", "two"), open_record(server, "there", "two")
    strategy = Strategy(micro_batch_size=2)
    running = there.claim(strategy, prediction(1.0))
    assert running is not None
    lost = Failure(kind=FailureKind.LOST_NODE, message="its node was lost")
    there.finish(running, Outcome(failure=lost))
    assert here.claim(strategy, prediction(1.0)) is not None
    assert there.claim(strategy, prediction(1.0)) is None


def test_what_another_search_has_pruned_is_claimed_only_by_force(server: str) -> None:
    here, there = open_record(server, "here", "three"), open_record(server, "there", "three")
    strategy = Strategy(micro_batch_size=2)
    there.add_pruned(strategy, prediction(90.0), "too large")
    assert here.claim(strategy, prediction(90.0)) is None
    forced = here.claim(strategy, prediction(90.0), is_forced=True)
    assert forced is not None
    assert forced.is_forced
    assert there.claim(strategy, prediction(90.0), is_forced=True) is None


def test_two_searches_of_one_study_run_no_strategy_twice(server: str, tmp_path: Path) -> None:
    space = "knobs: {zero_stage: [0, 1, 2, 3], micro_batch_size: [1]}\n"
    arguments = (
        *("search", "--model", "tiny", "--seq-len", "32", "--global-batch", "8", "--json"),
        *("--space", "space.yaml", "--out", "shared", "--storage", server, "--budget", "2m"),
        *("--devices", "1", "--sampler", "grid", "--confirm", "0"),
    )
    folders = [tmp_path / "one", tmp_path / "other"]
    for folder in folders:
        folder.mkdir()
        (folder / "space.yaml").write_text(space)
    searches = [autotune_process(*arguments, folder=folder) for folder in folders]
    answers = [search.communicate(timeout=150) for search in searches]
    for search, (_, stderr) in zip(searches, answers, strict=True):
        assert search.returncode == 0, stderr
    ran = autotune("report", "shared", "--storage", server, "--json", folder=folders[0])
    trials = [trial for trial in json.loads(ran.stdout)["trials"] if trial["duration_s"] > 0]
    launched = Counter(json.dumps(trial["strategy"]) for trial in trials)
    assert len(launched) == 4
    assert set(launched.values()) == {1}
    own = [len(list((folder / "shared" / "trials").iterdir())) for folder in folders]
    assert sum(own) == 4
    assert min(own) >= 1
