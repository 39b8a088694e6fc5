"""Which precisions a CPU computes, by what Linux lists and what oneDNN is limited to."""

from __future__ import annotations

from pathlib import Path

import pytest

from autotune.machine.cpu_precisions import cpu_precisions, read_flags
from autotune.machine.hardware import detect_hardware

AVX2 = frozenset({"sse4_2", "avx", "avx2", "fma"})
CASCADE_LAKE = AVX2 | {"avx512f", "avx512bw", "avx512_vnni"}
ZEN4 = CASCADE_LAKE | {"avx512_bf16"}
SAPPHIRE_RAPIDS = ZEN4 | {"avx512_fp16", "amx_bf16", "amx_tile"}
NEOVERSE_V1 = frozenset({"fp", "asimd", "sve", "bf16", "i8mm"})
NEOVERSE_N1 = frozenset({"fp", "asimd", "asimdhp"})


@pytest.mark.parametrize(
    ("flags", "bf16", "fp16"),
    [
        (frozenset(), False, False),
        (AVX2, False, False),
        (CASCADE_LAKE, False, False),
        (ZEN4, True, False),
        (SAPPHIRE_RAPIDS, True, True),
        (NEOVERSE_N1, False, False),
        (NEOVERSE_V1, True, False),
    ],
    ids=["unknown", "AVX2", "Cascade Lake", "Zen 4", "Sapphire Rapids", "N1", "V1"],
)
def test_precisions_are_those_of_the_instructions(
    flags: frozenset[str], bf16: bool, fp16: bool
) -> None:
    found = cpu_precisions(flags, limit="")
    assert (found.bf16, found.fp16) == (bf16, fp16)


@pytest.mark.parametrize(
    ("limit", "bf16", "fp16"),
    [
        ("AVX2", False, False),
        ("avx512_core", False, False),
        ("AVX512_CORE_BF16", True, False),
        ("AVX512_CORE_AMX", True, True),
        ("ALL", True, True),
    ],
)
def test_what_onednn_may_not_use_is_not_there(
    monkeypatch: pytest.MonkeyPatch, limit: str, bf16: bool, fp16: bool
) -> None:
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
    monkeypatch.setenv("DNNL_MAX_CPU_ISA", limit)
    found = cpu_precisions(SAPPHIRE_RAPIDS)
    assert (found.bf16, found.fp16) == (bf16, fp16)


@pytest.mark.parametrize(
    ("text", "flags"),
    [
        ("processor\t: 0\nflags\t\t: fpu avx2 avx512_bf16\n\nflags\t: other\n", "avx512_bf16"),
        ("processor\t: 0\nFeatures\t: fp asimd bf16\n", "bf16"),
    ],
    ids=["x86", "ARM"],
)
def test_flags_are_read_as_linux_writes_them(tmp_path: Path, text: str, flags: str) -> None:
    file = tmp_path / "cpuinfo"
    file.write_text(text)
    assert flags in read_flags(file)
    assert "other" not in read_flags(file)


def test_a_system_that_lists_nothing_has_no_flags(tmp_path: Path) -> None:
    assert read_flags(tmp_path / "none") == frozenset()
    (tmp_path / "cpuinfo").write_bytes(b"\xff\xfe no flags here")
    assert read_flags(tmp_path / "cpuinfo") == frozenset()


@pytest.mark.parametrize("limit", ["AVX2", "AVX512_CORE_VNNI"])
def test_detected_hardware_has_no_bf16_where_the_cpu_may_not_use_it(
    monkeypatch: pytest.MonkeyPatch, limit: str
) -> None:
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", limit)
    hardware = detect_hardware()
    assert (hardware.supports_bf16, hardware.supports_fp16) == (False, False)
