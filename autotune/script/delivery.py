"""One rank of the user's own training to its end: `python -m autotune.script.delivery FILE`.

The same interception as in a trial, and nothing else: checkpoints, evaluation and logging are the
user's. The file says the strategy, its DeepSpeed JSON and the command.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from autotune.machine.extensions import UNUSED_EXTENSIONS
from autotune.question.command import TrainingCommand
from autotune.script.deepspeed_calls import DeepSpeedCalls
from autotune.script.execution import execute
from autotune.script.steering import Steering
from autotune.script.trainers import steer_trainers
from autotune.space.strategy import Strategy

__all__ = ["DELIVERED", "main"]

DELIVERED = "autotune"
"""What lines on stderr begin with."""


class _Quiet:
    """Hears of the engine and does nothing."""

    def engine_made(self, engine: Any, call: Mapping[str, Any]) -> None:
        """It trains; that is all."""


def main() -> None:
    """Entry of each rank."""
    order = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    command = TrainingCommand.from_dict(order["command"])
    os.environ.update(command.environment)
    _leave_out_extensions()
    config = order["config"]
    steering = Steering(
        strategy=Strategy.from_dict(order["strategy"]),
        config=config,
        accumulation=int(config["gradient_accumulation_steps"]),
        knows_layers=bool(order["is_predictable"]),
        on_change=_say,
    )
    steer_trainers(steering)
    DeepSpeedCalls(steering, _Quiet()).install()
    arguments = command.filled(
        {
            "micro_batch_size": str(steering.micro_batch_size),
            "gradient_accumulation_steps": str(steering.accumulation),
            "ds_config": str(order["config_file"]),
            "output_dir": command.first_values.get("output_dir", "output"),
        }
    )
    execute(command, arguments, local_rank=int(os.environ.get("LOCAL_RANK", "0")))


def _leave_out_extensions() -> None:
    """As in trials on CPU ranks: these take minutes to compile and are not needed."""
    if os.environ.get("DS_ACCELERATOR") == "cpu":
        import deepspeed.ops

        deepspeed.ops.__compatible_ops__.update(dict.fromkeys(UNUSED_EXTENSIONS, False))


def _say(words: str) -> None:
    if os.environ.get("RANK", "0") == "0":
        print(f"{DELIVERED}: {words}", file=sys.stderr)


if __name__ == "__main__":
    main()
