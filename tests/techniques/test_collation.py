"""Batches that the exported collator makes, and attention over joined samples."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from autotune.errors import ConfigError
from autotune.question.workload import Method
from autotune.space.strategy import Strategy
from autotune.space.strategy_file import StrategyFile
from autotune.techniques.apply import apply
from autotune.techniques.collation import collator, pack
from tests.techniques.small_models import build

SAMPLES: list[dict[str, Any]] = [
    {"input_ids": [5, 6, 7, 8, 9]},
    {"input_ids": [10, 11]},
    {"input_ids": list(range(20, 37)), "labels": [-100] * 4 + list(range(24, 37))},
]


@pytest.fixture
def written(tmp_path: Path) -> Any:
    def write(**knobs: Any) -> Path:
        path = tmp_path / "strategy.yaml"
        strategy = Strategy.from_dict({"precision": "fp32", "micro_batch_size": 3} | knobs)
        exported = StrategyFile(
            model="small",
            seq_len=16,
            global_batch_size=6,
            method=Method.FULL,
            lora_targets=("all-linear",),
            learning_rate=None,
            strategy=strategy,
        )
        path.write_text(exported.to_yaml())
        return path

    return write


def test_a_joined_batch_is_what_transformers_flattens(written: Any) -> None:
    from transformers import DataCollatorWithFlattening

    ours = collator(written(batching="padding_free"))(SAMPLES[:2])
    theirs = DataCollatorWithFlattening(return_flash_attn_kwargs=True)(
        [{**sample, "labels": sample["input_ids"]} for sample in SAMPLES[:2]]
    )
    assert set(ours) == set(theirs)
    for name, value in theirs.items():
        assert torch.equal(torch.as_tensor(ours[name]), torch.as_tensor(value)), name


def test_samples_are_cut_off_and_padded_to_a_multiple_of_8(written: Any) -> None:
    batch = collator(written(), pad_token_id=3)(SAMPLES)
    assert batch["input_ids"].shape == (3, 16)
    assert batch["attention_mask"].sum(1).tolist() == [5, 2, 16]
    assert (batch["labels"][batch["attention_mask"] == 0] == -100).all()
    assert (batch["input_ids"][batch["attention_mask"] == 0] == 3).all()
    assert collator(written())(SAMPLES[:2])["input_ids"].shape == (2, 8)


def test_packed_sequences_are_full_and_lose_no_token_between(written: Any) -> None:
    packed = pack(SAMPLES * 3, written(batching="packed"))
    assert {len(each["input_ids"]) for each in packed} == {16}
    assert all(sum(each["lengths"]) == 16 for each in packed)
    stream = [n for sample in SAMPLES * 3 for n in sample["input_ids"][:16]]
    assert [n for each in packed for n in each["input_ids"]] == stream[: 16 * len(packed)]
    batch = collator(written(batching="packed"))(packed[:2])
    assert batch["input_ids"].shape == (1, 32)
    assert batch["max_length_q"] <= 16


@pytest.mark.parametrize("model_type", ["llama", "mistral", "qwen2", "gpt_neox", "gemma"])
def test_loss_and_gradients_equal_those_of_padded_samples(written: Any, model_type: str) -> None:
    found = []
    for batching in ("padded", "padding_free"):
        torch.manual_seed(0)
        model = build(model_type).train()
        path = written(batching=batching)
        apply(model, path)
        loss = model(**collator(path)(SAMPLES), use_cache=False).loss
        loss.backward()
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        found.append((loss.detach(), torch.cat([each.flatten() for each in gradients])))
    (padded, padded_gradients), (joined, joined_gradients) = found
    assert joined == pytest.approx(float(padded), rel=1e-5)
    assert torch.allclose(joined_gradients, padded_gradients, rtol=1e-4, atol=1e-6)


def test_a_sample_learns_nothing_of_its_neighbour(written: Any) -> None:
    model = build("llama").eval()
    path = written(batching="padding_free")
    apply(model, path)
    first, second = SAMPLES[:2]
    together = collator(path)([first, second])
    together.pop("labels")
    logits = model(**together, use_cache=False).logits[0, 5:]
    alone = model(torch.tensor([second["input_ids"]]), use_cache=False).logits[0]
    assert torch.allclose(logits, alone, atol=1e-5)


def test_positions_alone_keep_samples_apart_too(written: Any) -> None:
    model = build("llama").eval()
    path = written(batching="padding_free")
    apply(model, path)
    batch = collator(path)(SAMPLES)
    told = model(**batch, use_cache=False).logits
    plain = {name: batch[name] for name in ("input_ids", "position_ids")}
    assert torch.allclose(model(**plain, use_cache=False).logits, told, atol=1e-6)


def test_a_padded_batch_is_still_masked(written: Any) -> None:
    model = build("llama").eval()
    apply(model, written(batching="padding_free"))
    ids = [5, 6, 7, 8]
    alone = model(torch.tensor([ids]), use_cache=False).logits[0]
    left = model(
        torch.tensor([[0, 0, *ids]]),
        attention_mask=torch.tensor([[0, 0, 1, 1, 1, 1]]),
        position_ids=torch.tensor([[0, 0, 0, 1, 2, 3]]),
        use_cache=False,
    ).logits[0, 2:]
    assert torch.allclose(left, alone, atol=1e-5)


def test_a_sample_without_tokens_is_refused(written: Any) -> None:
    with pytest.raises(ConfigError, match="at least one token"):
        collator(written())([{"input_ids": []}])
