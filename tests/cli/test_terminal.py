"""A search in a real terminal: what is drawn there, and what Ctrl-C does."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import struct
import sys
import termios
import time
from pathlib import Path

import psutil
import pytest

pytestmark = pytest.mark.slow

_WIDTH = 70
_CTRL_C = b"\x03"


class TerminalSearch:
    """`autotune search` with a pseudo-terminal for all its streams."""

    def __init__(self, folder: Path, *arguments: str, term: str = "xterm") -> None:
        self.output = b""
        self._pid, self._terminal = pty.fork()
        if self._pid == 0:
            os.chdir(folder)
            tiny = ("search", "--model", "tiny", "--seq-len", "32", "--global-batch", "8")
            command = [sys.executable, "-m", "autotune", *tiny, *arguments]
            environment = dict(os.environ) | {"DS_ACCELERATOR": "cpu", "TERM": term}
            # Readline puts them into the C library's environment, which workers of xdist inherit.
            for size in ("COLUMNS", "LINES"):
                environment.pop(size, None)
            os.execve(sys.executable, command, environment)
        fcntl.ioctl(self._terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 40, _WIDTH, 0, 0))
        self.process = psutil.Process(self._pid)

    @property
    def text(self) -> str:
        return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", self.output.decode())

    def read_until(self, pattern: str, timeout_s: float = 60) -> None:
        """Until the text shows a pattern."""
        deadline = time.monotonic() + timeout_s
        while not re.search(pattern, self.text):
            assert time.monotonic() < deadline, f"{pattern} was not shown:\n{self.text}"
            if not self._read():
                break
        assert re.search(pattern, self.text), self.text

    def press_ctrl_c(self) -> None:
        os.write(self._terminal, _CTRL_C)

    def exit_status(self, timeout_s: float = 60) -> int:
        """Read to the end and wait."""
        deadline = time.monotonic() + timeout_s
        while self._read():
            assert time.monotonic() < deadline, self.text
        status = os.waitstatus_to_exitcode(os.waitpid(self._pid, 0)[1])
        os.close(self._terminal)
        return status

    def _read(self) -> bool:
        """Take what comes in a moment; False when the other end is closed."""
        if select.select([self._terminal], [], [], 0.1)[0]:
            try:
                data = os.read(self._terminal, 65536)
            except OSError:  # Linux's way to say that nobody has it open any more
                return False
            self.output += data
            return bool(data)
        return True


def test_the_view_follows_the_search_and_leaves_the_answer_alone_behind(tmp_path: Path) -> None:
    search = TerminalSearch(
        tmp_path, "--budget", "60s", "--trials", "3", "--confirm", "0", "--out", "study"
    )
    assert search.exit_status() == 0
    for pattern in (
        r"\d:\d\d of 1:00 left",
        r"Importing PyTorch and DeepSpeed",
        r"complete 2",
        r"best so far: Z\d",
        r"running 0: Z\d[^:]* GiB",
        r"\(pred\. ",
    ):
        assert re.search(pattern, search.text), pattern
    shown, _, left = search.output.decode().rpartition("\x1b[?25h")
    assert shown.count("\x1b[?25l") == 1
    # What was drawn last is wiped, line by line, and then nothing moves the cursor any more.
    left = left.replace("\r", "")
    wiped = re.match(r"(\x1b\[1A\x1b\[2K)+", left)
    assert wiped is not None
    assert "\x1b[1A" not in left[wiped.end() :]
    assert "Pareto front" in left
    # A line wider than the terminal would wrap, and the wipe would miss it.
    view = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown)
    assert [line for line in re.split(r"[\r\n]+", view) if len(line) > _WIDTH] == []


def test_a_terminal_that_moves_no_cursor_gets_a_line_for_each_event(tmp_path: Path) -> None:
    search = TerminalSearch(tmp_path, "--budget", "60s", "--out", "study", term="dumb")
    search.read_until(r"Importing PyTorch and DeepSpeed")
    search.press_ctrl_c()
    search.exit_status()
    assert "Stopping the running trial" in search.text
    assert b"\x1b" not in search.output


def _assert_all_end(processes: list[psutil.Process]) -> None:
    _, alive = psutil.wait_procs(processes, timeout=5)
    assert alive == []


@pytest.mark.parametrize("moment", ["Importing PyTorch and DeepSpeed", "running 0"])
def test_ctrl_c_twice_kills_and_leaves_no_process_and_a_visible_cursor(
    tmp_path: Path, moment: str
) -> None:
    search = TerminalSearch(tmp_path, "--budget", "60s", "--out", "study")
    search.read_until(moment)
    time.sleep(0.3)
    below = search.process.children(recursive=True)
    assert below
    # On a busy machine two that come close together are one to the process: go on pressing.
    for _ in range(5):
        search.press_ctrl_c()
        time.sleep(0.01)
    assert search.exit_status() == 130
    assert search.output.rpartition(b"\x1b[?25l")[2].count(b"\x1b[?25h") == 1
    _assert_all_end(below)


def test_ctrl_c_while_the_libraries_load_ends_at_once_and_says_how_to_go_on(
    tmp_path: Path,
) -> None:
    search = TerminalSearch(tmp_path, "--budget", "60s", "--out", "study")
    search.read_until("Importing PyTorch and DeepSpeed")
    below = search.process.children(recursive=True)
    search.press_ctrl_c()
    pressed = time.monotonic()
    assert search.exit_status() == 1  # nothing was measured
    assert time.monotonic() - pressed < 5
    assert "To resume, run the same command" in search.text
    _assert_all_end(below)
