"""The precisions that a CPU has instructions for: bf16 and fp16, by its flags and oneDNN's limit.

oneDNN computes torch's matrix products. Where an instruction is missing it works on each number
by itself, so a precision without one is correct and slow. Does not know what is trained.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

__all__ = ["BF16_FLAGS", "CpuPrecisions", "cpu_precisions", "read_flags"]

_CPUINFO = Path("/proc/cpuinfo")

BF16_FLAGS = frozenset({"avx512_bf16", "amx_bf16", "bf16"})
"""Linux's names: two of x86, and that of ARM."""

_FP16_FLAGS = frozenset({"avx512_fp16"})

_LIMITS = ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA")
"""Variables by which a user keeps oneDNN from using newer instructions; the first that is set."""

_LIMITS_WITHOUT_BF16 = frozenset(
    {"sse41", "avx", "avx2", "avx2_vnni", "avx2_vnni_2", "avx512_core", "avx512_core_vnni"}
)
_LIMITS_WITHOUT_FP16 = _LIMITS_WITHOUT_BF16 | {"avx512_core_bf16"}
"""oneDNN's documentation, "CPU Dispatcher Control": what lies below each instruction set."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CpuPrecisions:
    """The precisions of 16 bit that a CPU computes with instructions of its own."""

    bf16: bool
    fp16: bool


def cpu_precisions(flags: frozenset[str] | None = None, limit: str | None = None) -> CpuPrecisions:
    """What a CPU computes.

    Args:
        flags: of the CPU; those of this machine if left out. Of a system that names none, nothing
            is taken to be there.
        limit: the instruction set that oneDNN may use at most; as the environment says if left
            out.
    """
    found = read_flags() if flags is None else flags
    most = (_limit() if limit is None else limit).strip().lower()
    return CpuPrecisions(
        bf16=bool(found & BF16_FLAGS) and most not in _LIMITS_WITHOUT_BF16,
        fp16=bool(found & _FP16_FLAGS) and most not in _LIMITS_WITHOUT_FP16,
    )


def read_flags(path: Path = _CPUINFO) -> frozenset[str]:
    """The flags of the first CPU that Linux lists: `flags` on x86, `Features` on ARM."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return frozenset()
    for line in lines:
        name, _, words = line.partition(":")
        if name.strip() in ("flags", "Features"):
            return frozenset(words.split())
    return frozenset()


def _limit() -> str:
    return next((os.environ[name] for name in _LIMITS if os.environ.get(name)), "")
