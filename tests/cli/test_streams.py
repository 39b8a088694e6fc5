"""Where the output goes decides nothing: a reader that left, a full disk, no stream."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from stored_study import store_study


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return store_study(tmp_path_factory.mktemp("studies") / "study")


def _shell(line: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Have a shell run a line, in which "$@" is `autotune` with these arguments."""
    return subprocess.run(
        ["bash", "-c", line, "bash", sys.executable, "-m", "autotune", *arguments],
        env=os.environ | environment,
        capture_output=True,
        encoding="utf-8",
        timeout=120,
        check=False,
    )


def test_a_reader_that_has_seen_enough_is_no_failure(study: Path) -> None:
    ran = _shell('"$@" | true; exit ${PIPESTATUS[0]}', "report", str(study))
    assert (ran.returncode, ran.stderr) == (0, "")


def test_a_full_disk_is_one_line_and_exit_status_1(study: Path) -> None:
    ran = _shell('"$@" > /dev/full', "report", str(study), "--json")
    assert ran.returncode == 1
    assert ran.stderr == "autotune: stdout cannot be written: No space left on device\n"


@pytest.mark.parametrize(
    ("line", "lines"),
    [
        ('"$@" 2> /dev/full', 5),
        ('"$@" 2>&-', 5),
        ('"$@" <&- 2>&-', 5),
        ('"$@" >&-', 0),
        ('"$@" <&- >&- 2>&-', 0),
    ],
)
def test_streams_that_nobody_reads_change_no_exit_status(line: str, lines: int) -> None:
    ran = _shell(line, "--help")
    assert (ran.returncode, ran.stderr) == (0, "")
    assert len(ran.stdout.splitlines()) >= lines
    assert bool(ran.stdout) == bool(lines)


def test_an_error_that_cannot_be_told_keeps_its_exit_status() -> None:
    assert _shell('"$@" 2> /dev/full', "plan", "--nodes", "0").returncode == 2
    assert _shell('"$@" 2>&-', "plan", "--nodes", "0").returncode == 2


def test_an_ascii_encoding_gets_look_alikes(study: Path) -> None:
    ran = _shell('"$@"', "report", str(study), PYTHONIOENCODING="ascii")
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.isascii()
    assert "Pareto front" in ran.stdout
    assert "\\u" not in ran.stdout


def test_what_has_no_look_alike_is_escaped() -> None:
    text = "tokens ± 3 … 漢 \udcff ─"
    assert text.encode("ascii", "autotune.look_alike") == rb"tokens +- 3 ... \u6f22 \udcff -"
    assert "漢 \udcff".encode("utf-8", "autotune.look_alike") == "漢 \\udcff".encode()
