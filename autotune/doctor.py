"""What this machine can do, and what is missing, each with what to type.

Looks without compiling, without a CUDA context and, unless asked, without importing torch. What is
found on the toolchain that DeepSpeed compiles with is in `toolchain.py`.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autotune.check import Check, CheckStatus
from autotune.toolchain import examine_toolchain

if TYPE_CHECKING:
    from packaging.requirements import Requirement
    from rich.console import RenderableType

    from autotune.hardware import Hardware

__all__ = ["Check", "CheckStatus", "examine", "exit_status", "render", "to_json"]

GIB = 2**30

_SHARED_MEMORY = Path("/dev/shm")
_MIN_HOST_MEMORY_BYTES = 4 * GIB
_MIN_DISK_BYTES = GIB
_MIN_SHARED_MEMORY_BYTES = GIB


def examine(
    results_folder: Path = Path("results"), *, with_torch: bool = False
) -> tuple[Check, ...]:
    """Look at everything a search needs.

    Args:
        results_folder: where studies are to be kept; need not exist.
        with_torch: also import torch, to ask which precisions the CPU computes in.
    """
    hardware = _detect()
    checks = [_python(), *_packages(), _liger(has_gpu=_has_gpu(hardware)), _gpus(hardware)]
    if _has_gpu(hardware):
        checks.append(_torch_build())
    checks += [_cpu_cores(), _host_memory(), _shared_memory(), _disk(results_folder)]
    checks += examine_toolchain()
    if with_torch:
        checks.append(_cpu_precisions())
    return tuple(checks)


def exit_status(checks: Sequence[Check]) -> int:
    """1 where something is missing without which no trial runs, else 0."""
    return int(any(check.status is CheckStatus.MISSING for check in checks))


def to_json(checks: Sequence[Check]) -> dict[str, Any]:
    """One JSON document."""
    return {
        "exit_status": exit_status(checks),
        "checks": [
            {
                "name": check.name,
                "status": str(check.status),
                "detail": check.detail,
                "remedy": check.remedy,
            }
            for check in checks
        ],
    }


def render(checks: Sequence[Check]) -> RenderableType:
    """A table, one check a row, what to type below the detail. Contains no markup."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    styles = {CheckStatus.OK: "green", CheckStatus.WARNING: "yellow", CheckStatus.MISSING: "red"}
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("check", no_wrap=True)
    table.add_column("", no_wrap=True)
    table.add_column("found", overflow="fold")
    for check in checks:
        found = Text(check.detail)
        if check.remedy:
            found.append(f"\n{check.remedy}", style="bold")
        style = styles[check.status]
        table.add_row(Text(check.name), Text(str(check.status), style=style), found)
    return table


def _python() -> Check:
    version = ".".join(str(part) for part in sys.version_info[:3])
    name = "Python"
    try:
        wanted = metadata.metadata("autotune")["Requires-Python"]
    except metadata.PackageNotFoundError:
        return Check.warning(
            name, f"{version}; autotune itself is not installed", "type: pip install -e ."
        )
    from packaging.specifiers import SpecifierSet

    if version in SpecifierSet(wanted):
        return Check.ok(name, f"{version} (needs {wanted})")
    return Check.missing(
        name, f"{version}, but autotune needs {wanted}", "type: uv python install"
    )


def _requirements(extra: str) -> Iterator[Requirement]:
    """What autotune itself asks of this environment: its core, or one extra alone."""
    from packaging.requirements import Requirement

    try:
        texts = metadata.requires("autotune") or []
    except metadata.PackageNotFoundError:
        return
    for text in texts:
        requirement = Requirement(text)
        marker = requirement.marker
        in_core = marker is None or marker.evaluate({"extra": ""})
        if marker is None or marker.evaluate({"extra": extra}):
            if extra and in_core:
                continue
            yield requirement


def _packages() -> Iterator[Check]:
    for requirement in _requirements(extra=""):
        yield _package(requirement)


def _package(requirement: Requirement) -> Check:
    name, wanted = requirement.name, str(requirement.specifier)
    extras = f"[{','.join(sorted(requirement.extras))}]" if requirement.extras else ""
    remedy = f"type: pip install '{name}{extras}{wanted}'"
    try:
        version = metadata.version(name)
    except metadata.PackageNotFoundError:
        return Check.missing(name, f"not installed (tested: {wanted})", remedy)
    if requirement.specifier.contains(version, prereleases=True):
        return Check.ok(name, f"{version} (tested: {wanted})")
    return Check.warning(name, f"{version} is outside the tested range {wanted}", remedy)


def _liger(*, has_gpu: bool) -> Check:
    name = "liger-kernel"
    requirement = next(_requirements(extra="liger"), None)
    if requirement is None:
        return Check.ok(name, "optional; autotune is not installed, so its range is not known")
    check = _package(requirement)
    if check.status is not CheckStatus.MISSING:
        return check
    if not has_gpu:
        return Check.ok(name, "not installed; its fused kernels are for GPUs only")
    return Check.warning(
        name,
        "not installed: fused_kernels, often the fastest strategies, will not be tried",
        "type: pip install 'autotune[liger]'",
    )


def _detect() -> Hardware | None:
    """None where the packages that detection needs are not installed."""
    from autotune.hardware import detect_hardware

    try:
        return detect_hardware()
    except ImportError:
        return None


def _has_gpu(hardware: Hardware | None) -> bool:
    from autotune.hardware import DeviceType

    return hardware is not None and hardware.device_type is DeviceType.CUDA


def _gpus(hardware: Hardware | None) -> Check:
    name = "GPU"
    if hardware is None:
        return Check.warning(
            name, "cannot be asked for without nvidia-ml-py and psutil", "install them, see above"
        )
    if _has_gpu(hardware):
        gib = hardware.device_memory_bytes / GIB
        return Check.ok(name, f"{hardware}, {gib:.0f} GiB each, driver {_driver_version()}")
    hidden = [
        f"{variable}={os.environ[variable]!r}"
        for variable in ("CUDA_VISIBLE_DEVICES", "DS_ACCELERATOR")
        if variable in os.environ
    ]
    if Path("/dev/nvidiactl").exists() and not hidden:
        return Check.warning(
            name, "there is an NVIDIA device, but its driver does not answer", "type: nvidia-smi"
        )
    note = f" ({', '.join(hidden)} is set)" if hidden else ""
    return Check.ok(name, f"no GPU{note}: trials use CPU ranks over gloo; try --model tiny")


def _driver_version() -> str:
    import pynvml

    try:
        pynvml.nvmlInit()
        try:
            return str(pynvml.nvmlSystemGetDriverVersion())
        finally:
            pynvml.nvmlShutdown()
    except pynvml.NVMLError as error:
        return f"unknown ({error})"


def _torch_build() -> Check:
    """A CPU build of torch beside a GPU is installed in good faith and fails in every trial."""
    name = "torch build"
    try:
        version = metadata.version("torch")
    except metadata.PackageNotFoundError:
        return Check.missing(name, "torch is not installed", "see torch above")
    if version.endswith("+cpu"):
        return Check.missing(
            name,
            f"{version} cannot use the GPU",
            "type: pip install --force-reinstall torch --index-url "
            "https://download.pytorch.org/whl/cu130",
        )
    return Check.ok(name, version)


def _cpu_cores() -> Check:
    num_cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None
    num_cores = num_cores or os.cpu_count() or 1
    if num_cores > 1:
        return Check.ok("CPU cores", str(num_cores))
    return Check.warning(
        "CPU cores", "1: two CPU ranks would share it", "type: autotune search --devices 1"
    )


def _host_memory() -> Check:
    name = "host memory"
    try:
        import psutil

        from autotune.hardware import host_memory_bytes

        total, free = host_memory_bytes(), int(psutil.virtual_memory().available)
    except ImportError:
        return Check.warning(name, "cannot be asked for without psutil", "see psutil above")
    free = min(total, free)
    detail = f"{total / GIB:.1f} GiB, {free / GIB:.1f} GiB free"
    if free >= _MIN_HOST_MEMORY_BYTES:
        return Check.ok(name, detail)
    return Check.warning(
        name,
        f"{detail}: two ranks of the smallest model want {_MIN_HOST_MEMORY_BYTES // GIB} GiB",
        "close other programs, or type: autotune search --model tiny --devices 1",
    )


def _shared_memory() -> Check:
    """NCCL and gloo exchange data between ranks of one host here; Docker gives 64 MiB."""
    name = "shared memory"
    if not _SHARED_MEMORY.is_dir():
        return Check.ok(name, f"no {_SHARED_MEMORY} on this system")
    size = shutil.disk_usage(_SHARED_MEMORY).total
    detail = f"{_SHARED_MEMORY} has {size / GIB:.2f} GiB"
    if size >= _MIN_SHARED_MEMORY_BYTES:
        return Check.ok(name, detail)
    return Check.warning(
        name,
        f"{detail}; ranks that exchange data through it may hang or crash",
        "start the container with: docker run --shm-size=8g, or --ipc=host",
    )


def _disk(folder: Path) -> Check:
    """Of the nearest folder that exists, since a study makes its own."""
    name = "results folder"
    existing = folder.absolute()
    while not existing.exists():
        existing = existing.parent
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        return Check.missing(
            name,
            f"{existing} cannot be written",
            "choose another: autotune search --out FOLDER",
        )
    free = shutil.disk_usage(existing).free
    detail = f"{folder}: {free / GIB:.1f} GiB free"
    if free >= _MIN_DISK_BYTES:
        return Check.ok(name, detail)
    return Check.warning(
        name, f"{detail}; a long study with its logs may fill it", "autotune search --out FOLDER"
    )


def _cpu_precisions() -> Check:
    """As DeepSpeed's CPU accelerator asks: it takes bf16 always, fp16 where oneDNN has it."""
    name = "CPU precisions"
    try:
        import torch
    except ImportError:
        return Check.warning(name, "cannot be asked for without torch", "see torch above")
    has_bf16 = bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    has_fp16 = bool(torch.ops.mkldnn._is_mkldnn_fp16_supported())
    bf16 = "bf16" if has_bf16 else "bf16 (emulated, slow)"
    fp16 = "fp16" if has_fp16 else "no fp16, which DeepSpeed refuses on this CPU"
    return Check.ok(name, f"fp32, {bf16}, {fp16}")
