import io
import json
import os
import shutil
import subprocess
import sys
import sysconfig
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import pytest
from packaging.specifiers import SpecifierSet
from rich.console import Console

from autotune.doctor import (
    Check,
    CheckStatus,
    examine,
    exit_status,
    machine,
    packages,
    render,
    to_json,
    toolchain,
)
from autotune.machine.hardware import DeviceType, Hardware

GIB = 2**30

H100 = Hardware(
    device_type=DeviceType.CUDA,
    device_kind="H100-80GB",
    num_devices=8,
    device_memory_bytes=80 * GIB,
    host_memory_bytes=512 * GIB,
    flops_per_s=1e15,
    memory_bytes_per_s=3e12,
)


def named(checks: list[Check] | tuple[Check, ...], name: str) -> Check:
    (found,) = [check for check in checks if check.name == name]
    return found


@pytest.fixture
def versions(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Versions to pretend; a package with an empty one is not installed."""
    pretended: dict[str, str] = {}
    real = metadata.version

    def version(name: str) -> str:
        found = pretended.get(name)
        if found == "":
            raise metadata.PackageNotFoundError(name)
        return found or real(name)

    monkeypatch.setattr(metadata, "version", version)
    return pretended


def package_checks(*, has_gpu: bool = False) -> list[Check]:
    return list(packages.examine_packages(has_gpu=has_gpu))


def test_this_machine_is_examined_whole(tmp_path: Path) -> None:
    checks = examine(tmp_path)
    assert len({check.name for check in checks}) == len(checks)
    assert all(check.remedy for check in checks if check.status is not CheckStatus.OK)
    assert {"Python", "torch", "GPU", "results folder", "C++ compiler", "CPU Adam"} <= {
        check.name for check in checks
    }


def test_every_core_requirement_is_checked_against_its_range() -> None:
    checks = package_checks()
    assert "liger-kernel" in {check.name for check in checks}
    assert "pytest" not in {check.name for check in checks}
    assert named(checks, "deepspeed").detail.endswith("(tested: <0.20,>=0.19.8)")


def test_an_absent_package_is_missing_and_says_what_to_type(versions: dict[str, str]) -> None:
    versions["ray"] = ""
    check = named(package_checks(), "ray")
    assert check.status is CheckStatus.MISSING
    assert check.remedy.startswith("type: pip install 'ray[tune]")
    assert exit_status([check]) == 1


def test_an_untested_version_is_a_warning(versions: dict[str, str]) -> None:
    versions["optuna"] = "4.2.0"
    check = named(package_checks(), "optuna")
    assert check.status is CheckStatus.WARNING
    assert "4.2.0 is outside the tested range" in check.detail
    assert exit_status([check]) == 0


def test_a_local_build_of_a_tested_version_is_within_its_range(versions: dict[str, str]) -> None:
    versions["torch"] = "2.13.0+cu130"
    assert named(package_checks(has_gpu=True), "torch").status is CheckStatus.OK
    assert named(package_checks(has_gpu=True), "torch build").status is CheckStatus.OK


def test_a_cpu_build_of_torch_beside_a_gpu_is_missing(versions: dict[str, str]) -> None:
    versions["torch"] = "2.13.0+cpu"
    assert named(package_checks(has_gpu=True), "torch build").status is CheckStatus.MISSING


def test_liger_is_missed_on_gpus_only(versions: dict[str, str]) -> None:
    versions["liger-kernel"] = ""
    assert named(package_checks(), "liger-kernel").status is CheckStatus.OK
    check = named(package_checks(has_gpu=True), "liger-kernel")
    assert check.status is CheckStatus.WARNING
    assert "autotune[liger]" in check.remedy


def test_a_checkout_that_is_not_installed_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> list[str]:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "metadata", absent)
    monkeypatch.setattr(metadata, "requires", absent)
    checks = package_checks()
    assert named(checks, "Python").status is CheckStatus.WARNING
    assert "pip install -e ." in named(checks, "Python").remedy


def test_an_old_python_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packages, "sys", SimpleNamespace(version_info=(3, 10, 1)))
    assert "3.10.1" not in SpecifierSet(">=3.11")
    assert named(package_checks(), "Python").status is CheckStatus.MISSING


def test_gpus_are_named_with_their_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_driver_version", lambda: "580.65")
    check = named(machine.examine_machine(H100, Path()), "GPU")
    assert check.detail == "8 x H100-80GB, 80 GiB each, driver 580.65"


def test_no_gpu_is_fine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_NVIDIA_CONTROL", Path("/nonexistent"))
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    check = named(machine.examine_machine(machine.detect_or_none(), Path()), "GPU")
    assert check.status is CheckStatus.OK
    assert "DS_ACCELERATOR='cpu' is set" in check.detail


def test_a_silent_driver_is_a_warning(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(machine, "_NVIDIA_CONTROL", tmp_path)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    cpu = machine.detect_or_none()
    monkeypatch.delenv("DS_ACCELERATOR")
    check = named(machine.examine_machine(cpu, Path()), "GPU")
    assert check.status is CheckStatus.WARNING
    assert check.remedy == "type: nvidia-smi"


@pytest.mark.parametrize("module", ["psutil", "pynvml"])
def test_the_machine_is_examined_without_optional_eyes(
    module: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("DS_ACCELERATOR", raising=False)
    monkeypatch.setitem(sys.modules, module, None)
    check = named(examine(), "GPU")
    assert check.status is CheckStatus.WARNING
    assert "pip install" in check.remedy


@pytest.mark.parametrize(
    ("name", "total_bytes", "free_bytes"),
    [("shared memory", 64 * 2**20, 64 * 2**20), ("results folder", 100 * GIB, 2**20)],
)
def test_little_space_is_a_warning(
    name: str, total_bytes: int, free_bytes: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    usage = SimpleNamespace(total=total_bytes, free=free_bytes)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    monkeypatch.setattr(machine, "_SHARED_MEMORY", tmp_path)
    assert named(machine.examine_machine(None, tmp_path), name).status is CheckStatus.WARNING


def test_the_results_folder_need_not_exist_but_must_be_writable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "not" / "yet"
    found = named(machine.examine_machine(None, folder), "results folder")
    assert found.status is CheckStatus.OK
    assert not folder.exists()
    monkeypatch.setattr(os, "access", lambda *_: False)
    found = named(machine.examine_machine(None, folder), "results folder")
    assert found.status is CheckStatus.MISSING
    assert str(tmp_path) in found.detail
    assert "--out" in found.remedy


def test_a_file_in_the_way_of_the_results_folder_is_missing(tmp_path: Path) -> None:
    (tmp_path / "results").touch()
    found = named(machine.examine_machine(None, tmp_path / "results" / "x"), "results folder")
    assert found.status is CheckStatus.MISSING


def test_without_a_toolchain_trials_run_but_offload_does_not(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    monkeypatch.setattr(sysconfig, "get_paths", lambda: {"include": str(tmp_path)})
    checks = toolchain.examine_toolchain()
    assert named(checks, "C++ compiler").remedy == "type: apt install g++"
    assert named(checks, "ninja program").remedy == "type: pip install ninja"
    assert "-dev" in named(checks, "Python headers").remedy
    assert "offload_optimizer cpu will not be tried" in named(checks, "CPU Adam").detail
    assert exit_status(checks) == 0


def test_ninja_of_an_environment_that_is_not_activated_is_pointed_out(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "ninja").touch()
    monkeypatch.setenv("PATH", "/nonexistent")
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    check = named(toolchain.examine_toolchain(), "ninja program")
    assert check.remedy == f'type: export PATH="{tmp_path}:$PATH"'


def test_a_compiler_named_by_cxx_must_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    check = named(toolchain.examine_toolchain(), "C++ compiler")
    assert check.status is CheckStatus.WARNING
    assert check.remedy == "type: unset CXX"


def test_a_missing_libaio_is_a_warning_with_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(toolchain, "libaio_header", lambda: None)
    check = named(toolchain.examine_toolchain(), "async I/O")
    assert check.status is CheckStatus.WARNING
    assert "offloading to NVMe will not be tried" in check.detail
    assert check.remedy == "type: apt install libaio-dev"


def test_cpu_adam_is_found_where_torch_keeps_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    assert not named(toolchain.examine_toolchain(), "CPU Adam").detail.startswith("compiled")
    (tmp_path / "cpu_adam").mkdir()
    (tmp_path / "cpu_adam" / "cpu_adam.so").touch()
    assert named(toolchain.examine_toolchain(), "CPU Adam").detail.startswith("compiled")


def test_a_lock_that_a_killed_build_left_is_pointed_out(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    (tmp_path / "cpu_adam").mkdir()
    (tmp_path / "cpu_adam" / "lock").touch()
    check = named(toolchain.examine_toolchain(), "CPU Adam")
    assert check.status is CheckStatus.WARNING
    assert f"rm '{tmp_path}/cpu_adam/lock'" in check.remedy


@pytest.mark.slow
def test_the_extensions_folder_is_torchs_own(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch.utils import cpp_extension

    monkeypatch.delenv("TORCH_EXTENSIONS_DIR", raising=False)
    theirs = Path(cpp_extension._get_build_directory("autotune_doctor_test", verbose=False))
    try:
        assert theirs.parent in [folder.resolve() for folder in toolchain.extensions_folders()]
    finally:
        theirs.rmdir()


@pytest.mark.parametrize(
    ("listed", "mended"), [("9.0a", "9.0"), ("8.0;9.0a+PTX", "8.0;9.0+PTX"), ("12.0f", "12.0")]
)
def test_lettered_architectures_are_a_warning(
    listed: str, mended: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", listed)
    check = named(toolchain.examine_toolchain(), "TORCH_CUDA_ARCH_LIST")
    assert check.status is CheckStatus.WARNING
    assert check.remedy == f"type: export TORCH_CUDA_ARCH_LIST='{mended}'"


@pytest.mark.parametrize("listed", ["", "9.0", "8.0 9.0+PTX"])
def test_plain_architectures_are_fine(listed: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", listed)
    check = named(toolchain.examine_toolchain(), "TORCH_CUDA_ARCH_LIST")
    assert check.status is CheckStatus.OK


def test_the_table_shows_details_as_they_are_and_what_to_type() -> None:
    checks = [
        Check.ok("fine", "[tune] is no markup"),
        Check.missing("ray", "not installed", "type: pip install 'ray[tune]'"),
    ]
    console = Console(file=io.StringIO(), width=80)
    console.print(render(checks))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "[tune] is no markup" in text
    assert "type: pip install 'ray[tune]'" in text
    assert "Fix this first: ray." in text


def test_json_carries_every_check_and_the_exit_status() -> None:
    document = json.loads(json.dumps(to_json([Check.warning("a", "b", "type: c")])))
    assert document == {
        "exit_status": 0,
        "checks": [{"name": "a", "status": "warning", "detail": "b", "remedy": "type: c"}],
        "measured": None,
    }


@pytest.mark.slow
def test_an_examination_imports_no_torch() -> None:
    program = (
        "import sys; from autotune.doctor import examine; names = [c.name for c in examine()]; "
        "assert 'CPU precisions' in names, names; "
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", program], check=True, timeout=120)
