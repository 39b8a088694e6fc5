"""The user's configuration with a strategy in it."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import pytest

from autotune.errors import ConfigError
from autotune.script.configuration import (
    load_configuration,
    with_strategy,
    without_side_effects,
)

OURS: dict[str, Any] = {
    "train_batch_size": 16,
    "train_micro_batch_size_per_gpu": 4,
    "gradient_accumulation_steps": 2,
    "gradient_clipping": 1.0,
    "zero_optimization": {"stage": 1, "reduce_bucket_size": 5},
    "optimizer": {"type": "AdamW", "params": {"lr": 1e-5, "torch_adam": True}},
}
THEIRS: dict[str, Any] = {
    "gradient_clipping": 0.3,
    "scheduler": {"type": "WarmupLR", "params": {}},
    "train_micro_batch_size_per_gpu": 1,
    "zero_optimization": {
        "stage": 3,
        "offload_param": {"device": "cpu"},
        "stage3_gather_16bit_weights_on_model_save": True,
    },
    "bf16": {"enabled": True},
    "optimizer": {"type": "AdamW", "params": {"lr": 3e-4, "betas": [0.8, 0.9], "eps": "auto"}},
    "tensorboard": {"enabled": True, "output_path": "here"},
}


def test_knobs_are_ours_and_all_else_is_theirs() -> None:
    made = with_strategy(THEIRS, OURS)
    assert made["gradient_clipping"] == 0.3
    assert made["scheduler"] == THEIRS["scheduler"]
    assert made["train_micro_batch_size_per_gpu"] == 4
    # Nothing of ZeRO-3 is left but how a model is saved.
    assert made["zero_optimization"] == {
        "stage": 1,
        "reduce_bucket_size": 5,
        "stage3_gather_16bit_weights_on_model_save": True,
    }
    assert "bf16" not in made
    params = made["optimizer"]["params"]
    assert params == {"lr": 3e-4, "betas": [0.8, 0.9], "torch_adam": True}
    assert OURS["optimizer"]["params"]["lr"] == 1e-5


def test_a_trainer_is_shown_its_own_optimizer() -> None:
    made = with_strategy(THEIRS, OURS, keeps_optimizer=True)
    assert made["optimizer"] == THEIRS["optimizer"]
    without = {key: value for key, value in THEIRS.items() if key != "optimizer"}
    assert "optimizer" not in with_strategy(without, OURS, keeps_optimizer=True)


def test_a_trial_writes_nothing() -> None:
    made = without_side_effects(THEIRS)
    assert made["tensorboard"] == {"enabled": False}
    assert made["gradient_clipping"] == 0.3


def test_a_configuration_is_a_dictionary_or_a_json_file(tmp_path: Path) -> None:
    (tmp_path / "ds.json").write_text('{"zero_optimization": {"stage": 2}}')
    assert load_configuration(tmp_path / "ds.json") == {"zero_optimization": {"stage": 2}}
    (tmp_path / "odd.json").write_text('{"a": [1, {"b": 2}], // why\n}')
    assert load_configuration(str(tmp_path / "odd.json")) == {"a": [1, {"b": 2}]}
    coded = base64.urlsafe_b64encode(b'{"zero_optimization": {"stage": 2}}').decode()
    assert load_configuration(coded) == {"zero_optimization": {"stage": 2}}
    copied = load_configuration(THEIRS)
    copied["zero_optimization"]["stage"] = 0
    assert THEIRS["zero_optimization"]["stage"] == 3
    (tmp_path / "list.json").write_text("[]")
    for wrong in (tmp_path / "list.json", tmp_path / "missing.json", 7):
        with pytest.raises(ConfigError):
            load_configuration(wrong)
