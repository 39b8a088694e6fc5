"""What the warm server does once for all ranks."""

from __future__ import annotations

import cpuinfo
import pytest

from autotune.worker import server


def test_the_processor_is_asked_for_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def get_cpu_info() -> dict[str, str]:
        asked.append(1)
        return {"vendor_id_raw": "GenuineIntel"}

    monkeypatch.setattr(cpuinfo, "get_cpu_info", get_cpu_info)
    server._look_at_processor()

    # As DeepSpeed's optimizer on the host asks for it.
    assert [cpuinfo.get_cpu_info()["vendor_id_raw"] for _ in range(2)] == ["GenuineIntel"] * 2
    assert len(asked) == 1


def test_a_processor_that_cannot_be_told_is_the_ranks_to_report(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def get_cpu_info() -> dict[str, str]:
        raise OSError("no processor")

    monkeypatch.setattr(cpuinfo, "get_cpu_info", get_cpu_info)
    server._look_at_processor()

    with pytest.raises(OSError, match="no processor"):
        cpuinfo.get_cpu_info()
