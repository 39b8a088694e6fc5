"""An export for samples of natural lengths, trained by its own Trainer example.

Prints what was promised beside what was delivered.

    python tests/benchmarks/exported_lengths.py EXPORT --lengths FILE [--out RUNS.jsonl]

Copies the export and saves the README's HF Trainer example as `train.py`. Of it only the model
(random weights), the data set (random tokens, lengths of the file), the number of steps and a
callback that times steps are filled in. Runs `sh launch.sh` in an environment of PATH, HOME and
Python's path, and prints real tokens/s and reserved memory, promised and delivered.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import autotune

_MODEL = """
from transformers import AutoConfig, TrainerCallback
import random, time
values, lengths, vocabulary, device = json.load(open("benchmark.json"))
draw = random.Random(1)
dataset = [
    {"input_ids": [draw.randrange(vocabulary) for _ in range(draw.choice(lengths))]}
    for _ in range(4000)
]


class Meter(TrainerCallback):
    times = []

    def on_step_end(self, args, state, control, **more):
        if device == "cuda":
            torch.cuda.synchronize()
        self.times.append(time.perf_counter())

    def on_train_end(self, args, state, control, **more):
        steps = [b - a for a, b in zip(self.times, self.times[1:])][2:]
        samples = args.per_device_train_batch_size * args.gradient_accumulation_steps
        rate = samples * args.world_size * len(steps) / sum(steps)
        mean = sum(len(row["input_ids"]) for row in dataset) / len(dataset)
        peak = torch.cuda.max_memory_reserved() if device == "cuda" else 0
        if args.process_index == 0:
            print(json.dumps({"tokens_per_second": rate * mean, "reserved_gib": peak / 2**30}))


with torch.device(device):
    model = AutoModelForCausalLM.from_config(
        AutoConfig.for_model(**values), dtype=torch.DTYPE, attn_implementation="sdpa"
    )
"""


def _program(readme: str, num_steps: int, dtype: str) -> str:
    """The Trainer example, filled in."""
    code = readme.partition("## HF Trainer")[2].partition("```python\n")[2].partition("```")[0]
    start = code.index("model = AutoModelForCausalLM.from_pretrained(")
    end = code.index("model = autotune.apply")
    code = code[:start] + _MODEL.replace("DTYPE", dtype) + code[end:]
    quiet = f'output_dir="output", max_steps={num_steps}, save_strategy="no", report_to="none",'
    code = code.replace('output_dir="output",', quiet)
    return code.replace("trainer.train()", "trainer.add_callback(Meter())\ntrainer.train()")


def main() -> None:
    """Run one export."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("export", type=Path)
    parser.add_argument("--lengths", type=Path, required=True, help="one length a line")
    parser.add_argument("--steps", type=int, default=14)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    provenance = json.loads((options.export / "provenance.json").read_text())
    shape = provenance["workload"]["model"]
    longest = provenance["workload"]["seq_len"]
    lengths = [min(longest, int(line)) for line in options.lengths.read_text().split()]
    is_cuda = provenance["hardware"]["device_type"] == "cuda"
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(shutil.copytree(options.export, Path(temporary) / "export"))
        dtype = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}[
            provenance["trial"]["strategy"]["precision"]
        ]
        program = _program((folder / "README.md").read_text(), options.steps, dtype)
        (folder / "train.py").write_text(program)
        device = "cuda" if is_cuda else "cpu"
        facts = [shape["config"], lengths, shape["vocab_size"], device]
        (folder / "benchmark.json").write_text(json.dumps(facts))
        root = str(Path(autotune.__file__).parents[1])
        python_path = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
        kept = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
        # As in an activated environment.
        kept["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{kept['PATH']}"
        ran = subprocess.run(
            ["sh", "launch.sh"],
            cwd=folder,
            env=kept | {"PYTHONPATH": python_path},
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )
    lines = [line for line in ran.stdout.splitlines() if '"tokens_per_second"' in line]
    if not lines:
        sys.exit(ran.stderr[-3000:])
    delivered = json.loads(lines[-1][lines[-1].index("{") :])
    measured = provenance["trial"]["measurement"]
    promised = {
        "tokens_per_second": measured["tokens_per_second"],
        "reserved_gib": measured["peak_reserved_bytes"] / 2**30,
    }
    result = {
        "strategy": provenance["trial"]["strategy_in_words"],
        "promised": promised,
        "delivered": delivered,
    }
    print(json.dumps(result))
    if options.out is not None:
        with options.out.open("a") as file:
            file.write(json.dumps(result) + "\n")


if __name__ == "__main__":
    main()
