"""Lengths of samples: read from files within limits, and what batches make of them."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path
from statistics import fmean

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autotune.errors import ConfigError
from autotune.question.length_files import read_data, read_lengths
from autotune.question.lengths import MOST_BINS, Lengths
from autotune.question.workload import Workload, load_model_shape


@given(st.lists(st.integers(1, 5000), min_size=1, max_size=3000))
def test_a_histogram_keeps_number_longest_and_mean(lengths: list[int]) -> None:
    found = Lengths.of(lengths)
    assert found.num_samples == len(lengths)
    assert found.longest == max(lengths)
    assert len(found.tokens) <= MOST_BINS
    assert found.mean == pytest.approx(fmean(lengths), abs=0.5)
    assert found.at(0.0) == found.tokens[0]
    assert found.at(1 - 1e-12) == found.longest


def test_the_longest_of_a_batch_is_as_drawn() -> None:
    lengths = Lengths.of([10, 20, 30, 400])
    drawn = random.Random(0)
    longest = [max(lengths.at(drawn.random()) for _ in range(3)) for _ in range(20_000)]
    assert lengths.expected_longest(3) == pytest.approx(fmean(longest), rel=0.02)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("lengths.txt", "100\n\n100\n30\n"),
        (
            "lengths.jsonl",
            '{"length": 100}\n{"length": 100}\n' + json.dumps({"input_ids": [1] * 30}),
        ),
        ("lengths.yaml", "lengths: {100: 2, 30: 1}\n"),
    ],
)
def test_every_form_of_a_file_reads_the_same(tmp_path: Path, name: str, text: str) -> None:
    path = tmp_path / name
    path.write_text(text)
    assert read_lengths(path) == Lengths((30, 100), (1, 2))


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("a.txt", "", "at least one length"),
        ("a.txt", "10\nten\n", "a.txt:2: neither a whole number nor JSON"),
        ("a.txt", "0\n", "a.txt:1: a length is a whole number from 1 to"),
        ("a.txt", "-3\n", "a length is a whole number"),
        ("a.txt", "1.5\n", "a length is a whole number"),
        ("a.txt", "999999999999\n", "a length is a whole number"),
        ("a.txt", "NaN\n", "a length is a whole number"),
        ("a.jsonl", '{"tokens": 3}\n', "a length is a whole number"),
        ("a.jsonl", '{"length": true}\n', "a length is a whole number"),
        ("a.jsonl", "[" * 100 + "\n", "neither a whole number nor JSON"),
        ("a.yaml", "lengths: {}\n", "lengths"),
        ("a.yaml", "lengths: {10: 0}\n", "a.yaml:1"),
        ("a.yaml", "length: {10: 1}\n", "did you mean lengths?"),
        ("a.yaml", "- 10\n", "must be a mapping"),
    ],
)
def test_a_mistake_in_a_file_is_one_line(tmp_path: Path, name: str, text: str, words: str) -> None:
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        read_lengths(path)
    assert str(caught.value).startswith("--lengths ")
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file_and_a_folder_are_named(tmp_path: Path) -> None:
    for path, words in ((tmp_path / "none", "no such file"), (tmp_path, "cannot be read")):
        with pytest.raises(ConfigError, match=words):
            read_lengths(path)
        with pytest.raises(ConfigError, match=words):
            read_data(path, tmp_path)


def test_a_data_set_is_counted_by_its_tokenizer(tmp_path: Path) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    words = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({"a": 0, "b": 1, "[UNK]": 2}, unk_token="[UNK]")
    )
    words.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    folder = tmp_path / "tokenizer"
    folder.mkdir()
    words.save(str(folder / "tokenizer.json"))
    template = "{% for m in messages %}{{ m['content'] }} {% endfor %}"
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", "chat_template": template})
    )
    data = tmp_path / "data.jsonl"
    data.write_text(
        '{"text": "a b a"}\n'
        '{"messages": [{"role": "user", "content": "a"}, {"role": "x", "content": "b"}]}\n'
        '{"prompt": "a ", "completion": "b b"}\n'
    )
    assert read_data(data, folder) == Lengths((2, 3), (1, 2))
    data.write_text('{"texts": "a"}\n')
    with pytest.raises(ConfigError, match=r"data\.jsonl:1: a sample has text, messages"):
        read_data(data, folder)
    with pytest.raises(ConfigError, match=r"--tokenizer .*none: no such folder"):
        read_data(data, tmp_path / "none")


def test_a_workload_cuts_lengths_off_and_keeps_them_in_its_record() -> None:
    workload = Workload(
        model=load_model_shape("tiny"),
        seq_len=64,
        global_batch_size=8,
        lengths=Lengths.of([10, 100, 200]),
    )
    assert workload.lengths == Lengths((10, 64), (1, 2))
    assert Workload.from_dict(json.loads(json.dumps(workload.to_dict()))) == workload
    assert replace(workload, lengths=None) != workload
    assert workload.tokens_per_step == 368


@pytest.mark.parametrize(
    ("tokens", "counts"),
    [((), ()), ((1,), ()), ((0,), (1,)), ((2, 1), (1, 1)), ((1,), (0,)), ((1.5,), (1,))],
)
def test_what_is_no_histogram_is_refused(tokens: tuple[int, ...], counts: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError):
        Lengths(tokens, counts)
