"""Plans randomly drawn trials of models that the predictor was not made with.

    python tests/benchmarks/unseen_points.py PLANNED.jsonl [--questions 0-5]
        [--hardware 1xH200 --seed 100 --num 3]

No GPU is needed: what is drawn from `unseen_points.yaml` and expected to fit one device is written
down with its prediction. `planned_trials.py` runs it. Another seed draws other strategies.
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path

from planned_trials import MODELS, planned_line

from autotune.machine.hardware_spec import read_hardware
from autotune.plan.plan import ASSUMED_SOFTWARE
from autotune.predictor import AnalyticPredictor
from autotune.profile import script_of
from autotune.question.workload import Method, Workload, load_model_shape
from autotune.space.space_file import load_search_space

HARDWARE = "1xH100-80GB"
FULL, LORA = Method.FULL, Method.LORA
QUESTIONS = (
    # Model, method, sequence length, global batch.
    ("phi-2", FULL, 1024, 8),
    ("olmo2-1b", FULL, 2048, 8),
    ("smollm2-1.7b", FULL, 1024, 16),
    ("stablelm-1.6b", FULL, 512, 16),
    ("starcoder2-3b", LORA, 2048, 4),
    ("gemma2-2b", FULL, 1024, 4),
    ("qwen3-4b", LORA, 1024, 8),
    ("smollm2-1.7b", LORA, 4096, 4),
)
NUM_OF_QUESTION = 6
_LONGEST_STEP_S = 2.5
"""Predicted; a trial that takes longer would leave no time for others."""


def main() -> None:
    """Read the command line, and draw."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--questions", default=f"0-{len(QUESTIONS) - 1}")
    parser.add_argument("--hardware", default=HARDWARE)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--num", type=int, default=NUM_OF_QUESTION, help="trials of a question")
    arguments = parser.parse_args()
    first, last = map(int, arguments.questions.split("-"))
    hardware = read_hardware(arguments.hardware, host_memory_gib=128).host
    with arguments.out.open("a", encoding="utf-8") as file:
        for number in range(first, last + 1):
            model, method, seq_len, batch = QUESTIONS[number]
            shape = load_model_shape(str(MODELS / model))
            workload = Workload(
                model=shape, seq_len=seq_len, global_batch_size=batch, method=method
            )
            space = load_search_space(
                str(Path(__file__).with_suffix(".yaml")), workload, hardware, ASSUMED_SOFTWARE
            )
            strategies = list(space.strategies())
            random.Random(arguments.seed + number).shuffle(strategies)
            predictor = AnalyticPredictor(workload, hardware, script_of)
            num_left = arguments.num
            for strategy in strategies:
                prediction = predictor.predict(strategy)
                if (
                    prediction.step_time_s > _LONGEST_STEP_S
                    or prediction.peak_device_bytes > 0.97 * hardware.device_memory_bytes
                ):
                    continue
                line = planned_line(workload, arguments.hardware, 1, strategy, prediction)
                line["model"] = model
                file.write(json.dumps(line) + "\n")
                file.flush()
                num_left -= 1
                if not num_left:
                    break
            print(f"{model} {method}: {arguments.num - num_left} of {len(strategies)}", flush=True)


if __name__ == "__main__":
    main()
