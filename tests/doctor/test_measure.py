"""A measurement of this machine: what it finds, and how it ends where something goes wrong."""

from __future__ import annotations

import json
import os
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch
from command_line import autotune

from autotune.doctor.measure import measure_rates, session
from autotune.doctor.measure.disk import disk_bytes_per_s
from autotune.doctor.measure.timing import seconds_of
from autotune.errors import LaunchError
from autotune.machine.hardware import Hardware, detect_hardware
from autotune.machine.rates import Rates

CPU = torch.device("cpu")


@pytest.fixture
def hardware(monkeypatch: pytest.MonkeyPatch) -> Hardware:
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    return detect_hardware(2)


def test_work_is_done_at_least_once_in_each_round() -> None:
    calls = []
    assert seconds_of(lambda: calls.append(len(calls)), CPU) > 0
    assert len(calls) > 4


def test_a_disk_is_measured_and_left_as_it_was(tmp_path: Path) -> None:
    try:
        rate = disk_bytes_per_s(tmp_path)
    except OSError as error:
        pytest.skip(f"no O_DIRECT here: {error}")
    assert rate > 0
    assert list(tmp_path.iterdir()) == []


def test_a_rank_that_ends_without_a_word_is_an_error_in_one_line(
    hardware: Hardware, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session.sys, "executable", "/bin/false")
    with pytest.raises(LaunchError, match="no rate could be measured") as caught:
        measure_rates(hardware)
    assert "\n" not in str(caught.value)


def test_a_rank_that_hangs_is_ended_when_the_time_is_over(
    hardware: Hardware, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    hangs = tmp_path / "hangs"
    hangs.write_text(f"#!/bin/sh\necho $$ >> {tmp_path}/pids\nexec sleep 600\n")
    hangs.chmod(0o755)
    monkeypatch.setattr(session.sys, "executable", str(hangs))
    with pytest.raises(LaunchError):
        measure_rates(hardware, deadline_s=1.0)
    for pid in (tmp_path / "pids").read_text().split():
        with pytest.raises(ProcessLookupError):
            os.kill(int(pid), 0)


def test_what_was_found_before_a_rank_failed_is_kept(
    hardware: Hardware, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    fails = tmp_path / "fails"
    event = json.dumps({"rate": "kernel_launch_s", "value": 5e-6})
    failure = json.dumps({"rate": "nvme_bytes_per_s", "failure": "OSError: no room"})
    # The last argument is the specification; its first value the folder.
    fails.write_text(
        "#!/bin/sh\nfor spec; do :; done\n"
        'folder=$(echo "$spec" | cut -d\'"\' -f4)\n'
        f"printf '%s\\n%s\\n' '{event}' '{failure}' >> $folder/events.jsonl\n"
        "echo planted >&2\nexit 3\n"
    )
    fails.chmod(0o755)
    monkeypatch.setattr(session.sys, "executable", str(fails))
    said: list[str] = []
    rates = measure_rates(replace(hardware, num_devices=1), on_failure=said.append)
    assert rates == Rates(kernel_launch_s=5e-6)
    assert said == [
        "nvme_bytes_per_s: OSError: no room",
        "a rank failed: planted",
    ]


@pytest.mark.slow
def test_doctor_measures_keeps_and_shows_the_rates_of_this_machine(tmp_path: Path) -> None:
    ran = autotune("doctor", "--measure", "--nvme-path", ".", "--json", folder=tmp_path)
    assert ran.returncode == 0, ran.stderr
    document = json.loads(ran.stdout)
    found = document["measured"]["rates"]
    assert set(found) == {field.name for field in fields(Rates)}
    # Without a GPU nothing is copied to one.
    missing = {name for name, value in found.items() if value is None}
    assert missing <= {
        "host_to_device_bytes_per_s",
        "device_to_host_bytes_per_s",
        "nvme_bytes_per_s",
    }
    assert "matrix products in 16 bit: " in ran.stderr
    kept = json.loads((tmp_path / ".config" / "autotune" / "rates" / "cpu.json").read_text())
    assert kept == document["measured"]
    shown = autotune("doctor", folder=tmp_path)
    assert "data sheet" in shown.stdout
    assert sorted(path.name for path in tmp_path.iterdir()) == [".config"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--nvme-path", "."), "--nvme-path . needs --measure; add it"),
        (("--devices", "1"), "--devices 1 needs --measure; add it"),
        (("--measure", "--devices", "0"), "--devices must be at least 1"),
        (("--measure", "--nvme-path", "nowhere"), "--nvme-path nowhere: no such folder"),
    ],
)
def test_wrong_use_gets_one_line_and_exit_status_2(
    arguments: tuple[str, ...], words: str, tmp_path: Path
) -> None:
    ran = autotune("doctor", *arguments, folder=tmp_path)
    assert (ran.returncode, ran.stdout) == (2, "")
    assert words in ran.stderr
    assert len(ran.stderr.splitlines()) == 1
