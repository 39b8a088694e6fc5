"""The global batch where it is left out, and which ones the devices can share."""

from __future__ import annotations

from pathlib import Path

import pytest
from command_line import autotune_here

from autotune.cli.options import default_batch, nearest_batches


@pytest.mark.parametrize(
    ("num_devices", "batch"), [(1, 32), (7, 35), (5, 30), (12, 36), (20, 40), (24, 24), (48, 48)]
)
def test_a_batch_that_is_left_out_is_the_nearest_multiple_of_the_devices(
    num_devices: int, batch: int
) -> None:
    assert default_batch(num_devices) == batch


def test_the_batches_that_work_are_named() -> None:
    assert nearest_batches(32, 7) == "choose 28 or 35"
    assert nearest_batches(3, 7) == "choose 7 or a multiple of it"


def test_a_plan_takes_the_nearest_batch_and_says_so(tmp_path: Path) -> None:
    plan = ("plan", "--model", "7B", "--hardware", "7xA100-80GB", "--quick")
    ran = autotune_here(*plan, folder=tmp_path)
    assert ran.returncode == 0, ran.stderr
    assert "Using --global-batch 35: the multiple of 7 devices that is nearest to 32" in ran.stderr
    refused = autotune_here(*plan, "--global-batch", "32", folder=tmp_path)
    assert (refused.returncode, refused.stdout) == (2, "")
    assert "--global-batch 32 is not divisible by 7 devices" in refused.stderr
    assert "choose 28 or 35" in refused.stderr


def test_a_search_takes_the_nearest_batch_and_says_so(tmp_path: Path) -> None:
    search = ("search", "--model", "tiny", "--devices", "3", "--resume")
    ran = autotune_here(*search, folder=tmp_path)
    assert "Using --global-batch 33: the multiple of 3 devices that is nearest to 32" in ran.stderr
    refused = autotune_here(*search, "--global-batch", "32", folder=tmp_path)
    assert "--global-batch 32 is not divisible by 3 devices; " in refused.stderr
    assert "choose 30 or 33" in refused.stderr
