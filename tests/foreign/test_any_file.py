"""Whatever a file holds, it is read or refused in one line, and so is what becomes of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import files
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mutations import many, mutations, refusal
from ruamel.yaml import YAML

from autotune.errors import ConfigError
from autotune.foreign.reader import read_setup
from autotune.machine.hardware_spec import read_hardware
from autotune.plan.plan import ASSUMED_SOFTWARE
from autotune.question.workload import Method, Workload, load_model_shape

RANKS = read_hardware("4xH100-80GB", num_nodes=1, host_memory_gib=None, nvme_gib=None).all_ranks
TINY = load_model_shape("tiny")


def trees() -> list[Any]:
    """The files of the tests as trees."""
    contents = [getattr(files, name) for name in files.__all__ if name != "write"]
    return [
        json.loads(json.dumps(YAML(typ="safe").load(each) if isinstance(each, str) else each))
        for each in contents
        if each is not files.AXOLOTL_LIGER_FSDP
    ]


TREES = trees()


@many(300)
@given(data=st.data())
def test_any_value_is_read_or_refused_in_one_line(data: st.DataObject, tmp_path: Path) -> None:
    tree = data.draw(mutations(data.draw(st.sampled_from(TREES)), 3))
    path = files.write(tmp_path, "theirs.json", json.dumps(tree))
    files.write(tmp_path, "json/zero.json", files.DEEPSPEED_AUTO)
    words = refusal(lambda: planned_from(path))
    assert words is None or words.startswith("--from ")


def planned_from(path: Path) -> None:
    """Read a file, and make of it what a plan makes of it."""
    setup = read_setup(path)
    batch = setup.global_batch(4) or 32
    assert batch <= 2**24
    workload = Workload(
        model=TINY,
        seq_len=min(setup.seq_len or 64, 512),
        global_batch_size=batch,
        method=setup.method or Method.FULL,
        lora_rank=setup.lora_rank or 16,
    )
    made = setup.strategy(workload, RANKS, ASSUMED_SOFTWARE)
    assert (made.strategy is None) == (made.problem is not None)
    said = (*setup.left_out, *setup.notes, *made.notes, made.problem or "none")
    assert all(text.isprintable() for text in said)


@pytest.mark.parametrize("text", ["", "{}", "[]", "null", "3", "\x00", "a: &a [*a]", "{" * 99])
@pytest.mark.parametrize("suffix", ["json", "yaml"])
def test_what_is_no_file_of_a_tool_is_refused(text: str, suffix: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^--from "):
        read_setup(files.write(tmp_path, f"theirs.{suffix}", text))
