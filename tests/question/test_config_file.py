"""What is no config.json of a model is refused in one line that names the file and the field."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from autotune.errors import ConfigError
from autotune.question.config_file import read_config_file

PLACE = "--model mine: config.json"

DEEP = '{"a": ' * 100 + "1" + "}" * 100
DEEPER = '{"a": ' * 100_000 + "1" + "}" * 100_000


def _refusal(path: Path) -> str:
    with pytest.raises(ConfigError) as refused:
        read_config_file(path, PLACE)
    words = str(refused.value)
    assert words.startswith(PLACE)
    assert "\n" not in words
    assert len(words) < 400
    return words


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty"),
        (b" \n ", "is empty"),
        (b"{", "is not valid JSON"),
        (b'{"a": 1} {"a": 1}', "is not valid JSON"),
        (b"[]", "must be a JSON object, got []"),
        (b"null", "must be a JSON object, got None"),
        (b'"model_type"', "must be a JSON object"),
        (b"\xff\xfe{\x00}\x00", "it is not UTF-8"),
        (b'{"model_type": "ll\xe4ma"}', "it is not UTF-8"),
        (b'\xef\xbb\xbf{"model_type": "llama"}', "begins with a byte order mark"),
        (b'{"vocab_size": 3, "vocab_size": 4}', "vocab_size appears twice"),
        (b'{"rope": {"theta": 3, "theta": 4}}', "rope.theta appears twice"),
        (b'{"eps": NaN}', "eps must be a number, got nan"),
        (b'{"eps": Infinity}', "eps must be a number, got inf"),
        (b'{"eps": 1e999}', "eps must be a number, got inf"),
        (b'{"eps": [1.0, NaN]}', "eps[1] must be a number, got nan"),
        (b'{"num_hidden_layers": 1000000000}', "num_hidden_layers must be at most 500"),
        (b'{"num_attention_heads": 1000000000}', "num_attention_heads must be at most"),
        (b'{"hidden_size": -1000000000000}', "hidden_size must be at most"),
        (b'{"theta": ' + b"9" * 30 + b"}", "theta must be at most"),
        (b'{"theta": ' + b"9" * 5000 + b"}", "is not valid JSON"),
        (DEEP.encode(), "is nested deeper than 32 levels"),
        (DEEPER.encode(), "is nested deeper than 32 levels"),
        (b"[" * 100_000, "is nested deeper than 32 levels"),
        (b'{"\\u001b[31m": NaN}', "'\\x1b[31m' must be a number"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_a_wrong_content_is_named(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(content)
    assert words in _refusal(path)


def test_what_is_no_file_is_not_waited_for(tmp_path: Path) -> None:
    fifo, folder, huge = tmp_path / "fifo", tmp_path / "folder", tmp_path / "huge"
    os.mkfifo(fifo)
    folder.mkdir()
    with huge.open("wb") as file:
        file.truncate(100 * 2**20)
    assert "is not a regular file" in _refusal(fifo)
    assert "cannot be read: Is a directory" in _refusal(folder)
    assert "is not a regular file" in _refusal(Path("/dev/zero"))
    assert "is larger than 2 MiB" in _refusal(huge)
    assert "cannot be read: No such file" in _refusal(tmp_path / "none")


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads anything")
def test_what_may_not_be_read_is_named(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text("{}")
    path.chmod(0)
    assert "cannot be read: Permission denied" in _refusal(path)


def test_what_transformers_writes_is_read(tmp_path: Path) -> None:
    fields = {
        "model_type": "mamba2",
        "time_step_limit": [0.0, float("inf")],
        "rope_scaling": {"factor": 8.0, "type": "yarn"},
        "torch_dtype": "bfloat16",
        "eos_token_id": [1, 106],
        "q_lora_rank": None,
    }
    path = tmp_path / "config.json"
    path.write_text(json.dumps(fields))
    assert read_config_file(path, PLACE) == fields
    path.write_text('{"vocab_size": 3, "vocab_size": 3}')
    assert read_config_file(path, PLACE) == {"vocab_size": 3}
