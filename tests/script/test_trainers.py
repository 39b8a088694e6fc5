"""What a trial leaves out of a trainer, and how its loaders get batches of another size."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset
from transformers import EarlyStoppingCallback

from autotune.script.trainers import _in_batches_of, _leave_out


class FakeTrainer:
    """Has what a Trainer has, and remembers from where it starts."""

    start: Any = "nowhere"

    def train(self, resume_from_checkpoint: Any = None, trial: Any = None) -> Any:
        self.start = resume_from_checkpoint
        return trial


def test_a_program_may_evaluate_and_resume(monkeypatch: pytest.MonkeyPatch) -> None:
    callback: Any = EarlyStoppingCallback
    monkeypatch.setattr(callback, "on_train_begin", callback.on_train_begin)
    _leave_out(FakeTrainer)
    trainer: Any = FakeTrainer()
    metrics = trainer.evaluate(metric_key_prefix="test")
    assert math.isnan(math.exp(metrics["test_loss"]))
    assert math.isnan(metrics["test_accuracy"])
    assert math.isnan(trainer.predict([]).metrics["test_loss"])
    assert trainer.train(resume_from_checkpoint=True, trial=7) == 7
    assert trainer.start is None
    assert callback().on_train_begin(None, None, None) is None


class Stream(IterableDataset[int]):
    """Samples without a length."""

    def __iter__(self) -> Iterator[int]:
        return iter(range(12))


def test_the_training_loader_gets_batches_of_another_size() -> None:
    model = torch.nn.Linear(1, 1)
    stream = DataLoader(Stream(), batch_size=2)
    ordered = DataLoader(list(range(12)), batch_size=2, num_workers=1, drop_last=True)
    for loader in (stream, ordered):
        _, changed, evaluation = _in_batches_of([model, loader, ordered], 3)
        assert next(iter(changed)).tolist() == [0, 1, 2]
        assert evaluation is ordered
