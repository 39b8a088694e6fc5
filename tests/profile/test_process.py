"""Profiles from the process of their own, as the predictor asks for them."""

from __future__ import annotations

import importlib.util
import subprocess
from dataclasses import replace
from pathlib import Path
from unittest import mock

import pytest
from small_shapes import small_shape

from autotune.knob_values import Attention
from autotune.profile import ModelProfile, Variant, process, profile_of
from autotune.question.workload import load_model_shape

SDPA = Variant(attention=Attention.SDPA, element_bytes=2)
LIGER = replace(SDPA, fused_kernels=True)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(process, "_known", {})


@pytest.mark.slow
def test_a_profile_is_traced_once_and_then_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shape = small_shape(tmp_path, "qwen2", num_key_value_heads=2)
    first = profile_of(shape, SDPA, 64)
    assert isinstance(first, ModelProfile)

    monkeypatch.setattr(process, "_known", {})
    with mock.patch.object(process, "_trace", side_effect=AssertionError):
        assert profile_of(shape, SDPA, 64) == first


@pytest.mark.slow
def test_a_model_that_was_moved_is_not_traced_again(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir()
    not_followed = mock.Mock(side_effect=lambda _, __, variants, ___: ["?"] * len(variants))
    with mock.patch.object(process, "_trace", not_followed) as trace:
        profile_of(small_shape(first, "qwen2"), SDPA, 64)
        profile_of(load_model_shape(str(first.rename(second))), SDPA, 64)

    assert trace.call_count == 1


@pytest.mark.slow
def test_why_a_model_cannot_be_traced_is_told_in_words(tmp_path: Path) -> None:
    shape = small_shape(tmp_path, "qwen2")
    config = {**shape.config, "model_type": "nothing-of-the-kind"}
    found = profile_of(replace(shape, model_type="nothing-of-the-kind", config=config), SDPA, 64)

    assert isinstance(found, str)
    assert "nothing-of-the-kind" in found


def test_a_process_that_was_killed_names_the_signal() -> None:
    ran = subprocess.CompletedProcess((), returncode=-9, stdout="", stderr="half a line")

    assert process._reason(ran) == "the process that traces it was ended by SIGKILL"


def test_code_of_a_model_itself_is_not_run_for_a_profile() -> None:
    shape = replace(load_model_shape("tiny"), source="some/model")

    assert isinstance(profile_of(shape, SDPA, 64), str)


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("liger_kernel") is None, reason="needs Liger")
@pytest.mark.parametrize("preset", ["tiny", "1.1B", "7B"])
def test_liger_keeps_the_inputs_of_norms_and_of_the_gate_alone(preset: str) -> None:
    found = profile_of(load_model_shape(preset), LIGER, 256)
    assert isinstance(found, ModelProfile)
    [layer] = found.layers

    # Compiled code keeps the same, and in fp32 the scales of norms that Liger keeps too.
    plain = profile_of(load_model_shape(preset), SDPA, 256)
    assert isinstance(plain, ModelProfile)
    lean = sum(saved.token_bytes for saved in plain.layers[0].lean)
    assert sum(saved.token_bytes for saved in layer.saved) == pytest.approx(lean + 8, abs=1)
    assert found.loss < plain.loss / 4
