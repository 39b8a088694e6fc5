"""What a file says of a host is within what there is, or refused with its line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from command_line import autotune_here
from hypothesis import given
from mutations import many, mutations, refusal

from autotune.errors import ConfigError
from autotune.machine.hardware import Hardware
from autotune.machine.hardware_spec import read_hardware

OWN: dict[str, Any] = {
    "device": "MyGPU",
    "count": 2,
    "memory_gib": 24,
    "tflops": 100.5,
    "bandwidth_gb_per_s": 900,
}
WHOLE: dict[str, Any] = OWN | {
    "host_memory_gib": 128,
    "nvme_gib": 500,
    "nvme_path": "/scratch",
    "compute_capability": 9.0,
    "bf16": True,
    "fp8": True,
    "rates": {"matmul_tflops": 80, "memory_gb_per_s": 700, "kernel_launch_us": 4},
}


def _read(folder: Path, record: object) -> Hardware:
    path = folder / "host.yaml"
    # JSON is YAML too.
    path.write_text(json.dumps(record))
    return read_hardware(str(path)).host


@many()
@given(mutations(WHOLE))
def test_any_file_is_a_host_or_one_line(
    tmp_path_factory: pytest.TempPathFactory, record: object
) -> None:
    folder = tmp_path_factory.getbasetemp()
    words = refusal(_read, folder, record)
    assert words is None or words.startswith(f"--hardware {folder}")


@many(8)
@given(mutations(WHOLE, most=1))
def test_any_file_ends_a_plan_by_the_rule(
    tmp_path_factory: pytest.TempPathFactory, record: object
) -> None:
    folder = tmp_path_factory.getbasetemp()
    (folder / "host.yaml").write_text(json.dumps(record))
    ran = autotune_here(
        *("plan", "--model", "tiny", "--hardware", "host.yaml", "--quick", "--json"), folder=folder
    )
    assert ran.returncode in (0, 1, 2)
    if ran.returncode == 2:
        assert len(ran.stderr.splitlines()) == 1
        assert ran.stdout == ""


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(("memory_gib", value) for value in (1e300, 1e-300, 0, -1, 10**20, 1_000_001)),
        *(("count", value) for value in (0, -1, 1025, 10**20, 1.5)),
        *(("tflops", value) for value in (1e300, 1e-300, "fast")),
        *(("host_memory_gib", value) for value in (1e300, 0)),
        ("nvme_gib", 1e300),
        ("rates", {"matmul_tflops": 1e300}),
    ],
)
def test_a_figure_that_no_host_has_is_refused_with_its_line(
    tmp_path: Path, key: str, value: object
) -> None:
    with pytest.raises(ConfigError, match=rf"^--hardware .*host\.yaml:1: {key}"):
        _read(tmp_path, WHOLE | {key: value})


@pytest.mark.parametrize("name", ["X\ncommand\n#", "\x1b[31mX", "X\u202e", "[red]X", "$(id)", ""])
def test_a_device_whose_name_steers_a_script_or_terminal_is_refused(
    tmp_path: Path, name: str
) -> None:
    with pytest.raises(ConfigError, match=r"host\.yaml:1: device ") as caught:
        _read(tmp_path, WHOLE | {"device": name})
    assert str(caught.value).isprintable()
    with pytest.raises(ConfigError, match=r"nvme_path .* is not printed"):
        _read(tmp_path, WHOLE | {"nvme_path": "/a\nb"})


@pytest.mark.parametrize(
    ("said", "bf16", "fp8", "triton"),
    [
        ({"compute_capability": 7.5}, False, False, False),
        ({"compute_capability": 8.0}, True, False, True),
        ({"compute_capability": 8.6}, True, False, True),
        ({"compute_capability": 8.9}, True, True, True),
        ({"compute_capability": 9}, True, True, True),
        ({"compute_capability": 12.1}, True, True, True),
        ({"compute_capability": 9.0, "bf16": False, "fp8": False}, False, False, True),
        ({"bf16": False}, False, False, False),
        ({"bf16": True}, True, False, True),
        ({"fp8": True}, True, True, True),
        ({"device": "T4"}, False, False, False),
        ({"device": "A40"}, True, False, True),
        ({"device": "RTX 6000 Ada Generation"}, True, True, True),
    ],
)
def test_what_a_device_computes_follows_from_what_the_file_says(
    tmp_path: Path, said: dict[str, Any], bf16: bool, fp8: bool, triton: bool
) -> None:
    host = _read(tmp_path, OWN | said)
    assert (host.supports_bf16, host.supports_fp8, host.runs_triton) == (bf16, fp8, triton)
    assert host.supports_tf32 is bf16


@pytest.mark.parametrize("device", ["MyGPU", "A100", "RTX 4090 Laptop GPU"])
def test_a_file_that_leaves_open_whether_there_is_bf16_is_asked(
    tmp_path: Path, device: str
) -> None:
    with pytest.raises(ConfigError, match=f"does not say whether {device} computes bf16; add its"):
        _read(tmp_path, OWN | {"device": device})


@pytest.mark.parametrize(
    ("device", "said", "words"),
    [
        ("V100-32GB", {"bf16": True}, "bf16: true needs compute capability 8.0 .* has 7.0"),
        ("T4", {"bf16": True}, "bf16: true needs compute capability 8.0 .* has 7.5"),
        ("A100-80GB", {"fp8": True}, "fp8: true needs compute capability 8.9 .* has 8.0"),
        ("MyGPU", {"fp8": True, "bf16": False}, "fp8: true needs bf16"),
        ("MyGPU", {"compute_capability": "8.0"}, "must be such as 8.0 or 8.6, got '8.0'"),
        ("MyGPU", {"compute_capability": 80.55}, "must be such as 8.0 or 8.6"),
        ("MyGPU", {"compute_capability": True}, "must be such as 8.0 or 8.6"),
        ("MI300X", {"bf16": True}, "MI300X is not supported: it is AMD's"),
    ],
)
def test_a_precision_that_the_device_does_not_have_is_refused(
    tmp_path: Path, device: str, said: dict[str, Any], words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        _read(tmp_path, OWN | {"device": device} | said)
