"""What the warm server does once for all ranks."""

from __future__ import annotations

import os

import cpuinfo
import pytest
import torch

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


def test_each_instruction_set_has_its_own_compiled_code(monkeypatch: pytest.MonkeyPatch) -> None:
    folders = []
    for instructions in ("AVX2", "AVX512"):
        monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
        monkeypatch.setattr(
            torch.backends.cpu, "get_cpu_capability", lambda name=instructions: name
        )
        server._keep_compiled_code_per_processor()
        folders.append(os.environ["TORCHINDUCTOR_CACHE_DIR"])
    assert folders[0].endswith("_avx2")
    assert folders[1].endswith("_avx512")


def test_a_cache_of_compiled_code_that_the_user_names_stays(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "/somewhere")
    server._keep_compiled_code_per_processor()
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == "/somewhere"
