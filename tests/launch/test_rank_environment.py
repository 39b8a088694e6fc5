"""What ranks are told by their environment."""

from __future__ import annotations

from dataclasses import replace

import pytest

from autotune.launch.rank_environment import rank_environment
from autotune.machine.hardware import DeviceType
from autotune.machine.hardware_spec import read_hardware

GPU = read_hardware("1xH100-80GB").host
CPU = replace(GPU, device_type=DeviceType.CPU)


def allocator(environment: dict[str, str]) -> dict[str, str]:
    pairs = environment["PYTORCH_CUDA_ALLOC_CONF"].split(",")
    return dict(pair.split(":") for pair in pairs)


def test_host_memory_is_pinned_by_as_many_threads_as_help(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYTORCH_CUDA_ALLOC_CONF", raising=False)
    for cores, threads in ((1, 1), (6, 4), (64, 8)):
        monkeypatch.setattr("os.cpu_count", lambda cores=cores: cores)
        settings = allocator(rank_environment(GPU))

        assert settings["expandable_segments"] == "True"
        assert settings["pinned_use_cuda_host_register"] == "True"
        assert settings["pinned_num_register_threads"] == str(threads)


def test_what_was_set_for_the_allocator_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTORCH_CUDA_ALLOC_CONF", "max_split_size_mb:512")
    settings = allocator(rank_environment(GPU))
    assert settings["max_split_size_mb"] == "512"
    assert "expandable_segments" not in settings
    assert settings["pinned_use_cuda_host_register"] == "True"

    own = "expandable_segments:True,pinned_use_cuda_host_register:False"
    monkeypatch.setenv("PYTORCH_CUDA_ALLOC_CONF", own)
    assert rank_environment(GPU)["PYTORCH_CUDA_ALLOC_CONF"] == own


def test_without_a_gpu_nothing_is_pinned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYTORCH_CUDA_ALLOC_CONF", raising=False)
    assert "pinned" not in rank_environment(CPU)["PYTORCH_CUDA_ALLOC_CONF"]


def test_launchers_side_by_side_have_devices_of_their_own_and_share_the_cores(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6,7")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr("os.cpu_count", lambda: 16)
    pair = replace(GPU, num_devices=2)
    places = [rank_environment(pair, place, num_slots=2) for place in range(2)]
    assert [e["CUDA_VISIBLE_DEVICES"] for e in places] == ["4,5", "6,7"]
    assert {e["OMP_NUM_THREADS"] for e in places} == {"4"}
    assert rank_environment(pair)["CUDA_VISIBLE_DEVICES"] == "4,5,6,7"


def test_the_allocators_settings_are_the_users_by_either_name(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("PYTORCH_CUDA_ALLOC_CONF", raising=False)
    monkeypatch.setenv("PYTORCH_ALLOC_CONF", "max_split_size_mb:512")
    environment = rank_environment(GPU)
    # torch would read it alone, and not the user's.
    assert "PYTORCH_CUDA_ALLOC_CONF" not in environment
    assert environment["PYTORCH_ALLOC_CONF"].startswith("max_split_size_mb:512,pinned_")
