"""A configuration gives a model shape that can be built, or one line that names file and field."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

import pytest
from bad_configs import REAL, VALUES, spoiled
from command_line import autotune_here
from hypothesis import HealthCheck, given, settings

from autotune.errors import ConfigError
from autotune.question.empty_model import build_empty_model
from autotune.question.model_config import transformers_config
from autotune.question.workload import Workload, load_model_shape


def _write(folder: Path, fields: dict[str, Any]) -> str:
    (folder / "config.json").write_text(json.dumps(fields))
    return str(folder)


def _refusal(folder: Path, **changes: Any) -> str:
    fields = REAL[changes.pop("of", "llama")] | changes
    with pytest.raises(ConfigError) as refused:
        load_model_shape(_write(folder, fields))
    words = str(refused.value)
    assert words.startswith(f"--model {folder}: config.json")
    assert "\n" not in words
    return words.removeprefix(f"--model {folder}: config.json")


@pytest.mark.parametrize("model_type", REAL)
def test_a_real_configuration_gives_a_shape_that_survives_json(
    model_type: str, tmp_path: Path
) -> None:
    shape = load_model_shape(_write(tmp_path, REAL[model_type]))
    assert shape.census is not None
    workload = Workload(model=shape, seq_len=16, global_batch_size=2)
    assert Workload.from_dict(json.loads(json.dumps(workload.to_dict()))) == workload


FIELDS = {name for fields in REAL.values() for name in fields} | {"its fields"}


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(spoiled())
def test_a_spoiled_configuration_gives_a_shape_or_one_line(
    tmp_path_factory: pytest.TempPathFactory, fields: dict[str, Any]
) -> None:
    folder = tmp_path_factory.mktemp("spoiled")
    try:
        shape = load_model_shape(_write(folder, fields))
    except ConfigError as error:
        refusal = str(error)
    else:
        assert shape.num_parameters > 0
        assert shape.num_lora_parameters(8, ("all-linear",)) > 0
        return
    place = f"--model {folder}: config.json"
    assert refusal.startswith(place)
    assert "\n" not in refusal
    assert any(name in refusal.removeprefix(place) for name in FIELDS)


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(VALUES)
def test_no_value_of_the_layers_is_waited_for(
    tmp_path_factory: pytest.TempPathFactory, value: Any
) -> None:
    folder = tmp_path_factory.mktemp("layers")
    fields = REAL["llama"] | {"num_hidden_layers": value}
    try:
        shape = load_model_shape(_write(folder, fields))
    except ConfigError as error:
        refusal = str(error)
    else:
        assert shape.num_hidden_layers == value
        return
    assert "num_hidden_layers" in refusal


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"num_attention_heads": 3, "num_key_value_heads": 3}, "num_attention_heads"),
        ({"num_key_value_heads": 3}, "num_key_value_heads 3 does not divide num_attention_heads"),
        ({"of": "opt", "num_attention_heads": 5}, "num_attention_heads"),
        ({"head_dim": 7}, "head_dim"),
        ({"num_hidden_layers": 0}, "num_hidden_layers"),
        ({"num_hidden_layers": True}, "num_hidden_layers"),
        ({"hidden_size": None}, "hidden_size"),
        ({"hidden_size": "64"}, "hidden_size"),
        ({"hidden_size": [64]}, "hidden_size"),
        ({"hidden_size": 64.0}, "hidden_size"),
        ({"vocab_size": -1}, "vocab_size"),
        ({"hidden_act": "siluu"}, "hidden_act"),
        ({"attention_dropout": 1.5}, "attention_dropout"),
        ({"of": "phi3", "pad_token_id": 32_000}, "pad_token_id: set it to null, or to the"),
        ({"of": "deepseek_v2", "num_experts_per_tok": None}, "num_experts_per_tok"),
    ],
    ids=lambda value: str(value)[:50],
)
def test_a_field_that_no_model_can_have_is_named(
    tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    assert words in _refusal(tmp_path, **changes)


def test_numbers_that_json_lacks_reach_the_model(tmp_path: Path) -> None:
    config = {
        "model_type": "bamba",
        "hidden_size": 64,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "attn_layer_indices": [1],
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 64,
        "mamba_n_heads": 8,
        "mamba_d_head": 16,
        "time_step_limit": [0.0, math.inf],
    }
    shape = load_model_shape(_write(tmp_path, config))
    assert transformers_config(shape.config).time_step_limit[1] == math.inf
    build_empty_model(json.loads(json.dumps(shape.config)))


def test_what_has_no_attention_is_refused(tmp_path: Path) -> None:
    for model_type in ("mamba", "rwkv"):
        with pytest.raises(ConfigError, match="not state-space or recurrent models"):
            load_model_shape(_write(tmp_path, {"model_type": model_type, "vocab_size": 64}))


PLAN = ("plan", "--hardware", "1xH100", "--quick", "--seq-len", "32", "--model")
SEARCH = ("search", "--budget", "1s", "--model")


@pytest.mark.parametrize("command", [PLAN, SEARCH], ids=lambda command: command[0])
def test_commands_refuse_a_model_in_one_line(command: tuple[str, ...], tmp_path: Path) -> None:
    folder = tmp_path / "t5"
    folder.mkdir()
    _write(folder, {"model_type": "t5", "architectures": ["T5ForConditionalGeneration"]})
    ran = autotune_here(*command, "t5", folder=tmp_path)
    assert (ran.returncode, ran.stdout) == (2, "")
    assert "T5ForConditionalGeneration (model_type t5) is an encoder-decoder" in ran.stderr
    assert len(ran.stderr.strip().splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["t5"]


def test_a_downloaded_model_passes_the_same_border(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a Hugging Face id: its config.json lies in the cache, as a download leaves it."""
    import huggingface_hub.constants

    snapshot = tmp_path / "models--org--bert" / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    _write(snapshot, {"model_type": "bert"})
    (tmp_path / "models--org--bert" / "refs").mkdir()
    (tmp_path / "models--org--bert" / "refs" / "main").write_text("0" * 40)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ConfigError, match=r"--model org/bert: config.json: .* is not causal"):
        load_model_shape("org/bert")
    with pytest.raises(ConfigError, match=r"--model org/none: its config.json cannot be loaded"):
        load_model_shape("org/none")


def test_a_model_folder_that_holds_no_file_of_that_name_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"the folder has no config\.json"):
        load_model_shape(str(tmp_path))
    os.mkfifo(tmp_path / "config.json")
    with pytest.raises(ConfigError, match="is not a regular file"):
        load_model_shape(str(tmp_path))
