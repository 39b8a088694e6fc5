"""What other work takes of the machine, by real processes."""

from __future__ import annotations

import subprocess
import sys
import time
from dataclasses import replace

import psutil
import pytest

from autotune.machine.hardware import DeviceType, Hardware
from autotune.machine.load import LoadMeter, busy_gpu_fraction, disturbance

_SPIN = "import time\nend = time.monotonic() + 1.0\nwhile time.monotonic() < end: pass"
_ORPHAN = (
    "import subprocess, sys; "
    "subprocess.Popen([sys.executable, '-c', sys.argv[1]], start_new_session=True)"
)


def test_own_processes_are_no_others_even_when_they_have_ended(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    spent: list[float] = []
    real = psutil.cpu_times

    def only_own() -> object:
        # A machine on which nobody else works: what is busy is what this process tree used.
        times = [p.cpu_times() for p in (psutil.Process(), *psutil.Process().children(True))]
        spent.append(sum(sum(one[:4]) for one in times))
        return real()._replace(
            user=spent[-1], nice=0.0, system=0.0, irq=0.0, softirq=0.0, steal=0.0
        )

    monkeypatch.setattr(psutil, "cpu_times", only_own)
    meter = LoadMeter()
    work = "import time\nwhile time.process_time() < 0.3: pass"
    subprocess.run([sys.executable, "-c", work], check=True)
    assert meter.cores_of_others() < 0.1
    assert spent[-1] - spent[0] > 0.2


def test_a_process_that_is_not_ours_counts_as_other_work() -> None:
    subprocess.run([sys.executable, "-c", _ORPHAN, _SPIN], check=True)
    meter = LoadMeter()
    time.sleep(0.7)
    # It has a core, or of a busy machine what is left of one.
    assert meter.cores_of_others() > 0.2


def test_what_runs_below_the_given_root_is_no_other_work(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    work = "import time\nwhile time.process_time() < 30: pass"
    sibling = subprocess.Popen([sys.executable, "-c", work])
    idle = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(30)"])
    try:
        spin = psutil.Process(sibling.pid)
        real = psutil.cpu_times

        def only_the_sibling() -> object:
            zero = real()._replace(nice=0.0, system=0.0, irq=0.0, softirq=0.0, steal=0.0)
            return zero._replace(user=sum(spin.cpu_times()[:2]))

        monkeypatch.setattr(psutil, "cpu_times", only_the_sibling)
        from_root, from_idle = LoadMeter(psutil.Process()), LoadMeter(psutil.Process(idle.pid))
        time.sleep(0.5)
        assert from_root.cores_of_others() == pytest.approx(0, abs=0.05)
        assert from_idle.cores_of_others() > 0.1
    finally:
        for process in (sibling, idle):
            process.kill()
            process.wait()


@pytest.mark.parametrize(
    ("fraction", "expected"), [(0.0, 0.0), (0.02, 0.0), (0.5, 0.5), (1.0, 1.0), (1.4, 1.0)]
)
def test_cpu_ranks_are_disturbed_by_whatever_cores_others_use(
    cpu_hardware: Hardware, fraction: float, expected: float
) -> None:
    cores = psutil.cpu_count() or 1
    assert disturbance(cpu_hardware, fraction * cores) == pytest.approx(expected)
    assert busy_gpu_fraction(cpu_hardware) == 0.0


def test_ranks_on_gpus_are_disturbed_once_their_cores_are_taken(
    cpu_hardware: Hardware, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(psutil, "cpu_count", lambda: 16)
    gpus = replace(cpu_hardware, device_type=DeviceType.CUDA, num_devices=4)
    assert disturbance(gpus, 12.0) == 0.0
    assert disturbance(gpus, 14.0) == pytest.approx(0.5)
