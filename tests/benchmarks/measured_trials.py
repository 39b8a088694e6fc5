"""Runs a list of strategies as trials on this machine, predicted beside measured.

Every technique once, on two models, without a search: what a trial costs, and how far off the
predictor is where it was never looked at. Predictions are made before each run.

    python tests/benchmarks/measured_trials.py OUT.jsonl
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from autotune.hardware import DeviceType, detect_hardware
from autotune.launcher import Launcher
from autotune.predictor import AnalyticPredictor
from autotune.strategy import Strategy
from autotune.trial import TrialSpec
from autotune.workload import Method, Workload, load_model_shape

GIB = 2**30

FULL, LORA, QLORA = Method.FULL, Method.LORA, Method.QLORA

CASES: tuple[tuple[str, Method, int, dict[str, Any]], ...] = (
    # model, method, global batch, knobs; on the CPU `tiny` takes the place of every model.
    ("1.1B", FULL, 8, {"zero_stage": 1, "micro_batch_size": 8, "fused_kernels": True}),
    ("1.1B", FULL, 8, {"zero_stage": 1, "micro_batch_size": 8}),
    ("1.1B", FULL, 128, {"zero_stage": 1, "micro_batch_size": 32, "fused_kernels": True}),
    ("1.1B", FULL, 128, {"zero_stage": 0, "micro_batch_size": 16, "fused_kernels": True}),
    ("1.1B", FULL, 128, {"zero_stage": 2, "micro_batch_size": 32, "fused_kernels": True}),
    (
        *("1.1B", FULL, 128),
        {"zero_stage": 3, "micro_batch_size": 32, "fused_kernels": True, "checkpoint_interval": 2},
    ),
    ("1.1B", FULL, 128, {"zero_stage": 1, "micro_batch_size": 64, "fused_kernels": True}),
    ("1.1B", FULL, 32, {"zero_stage": 0, "micro_batch_size": 8, "optimizer": "adafactor"}),
    ("1.1B", FULL, 32, {"zero_stage": 1, "micro_batch_size": 8, "optimizer": "adamw_8bit"}),
    ("1.1B", FULL, 32, {"zero_stage": 1, "micro_batch_size": 8, "precision": "fp16"}),
    (
        *("13B", LORA, 16),
        {"zero_stage": 1, "micro_batch_size": 4, "lora_rank": 16, "checkpoint_interval": 1}
        | {"fused_kernels": True},
    ),
    (
        *("7B", QLORA, 8),
        {"zero_stage": 1, "micro_batch_size": 4, "lora_rank": 16, "checkpoint_interval": 1}
        | {"fused_kernels": True},
    ),
    (
        *("1.1B", FULL, 32),
        {"zero_stage": 1, "micro_batch_size": 8, "fused_kernels": True}
        | {"offload_optimizer": "cpu"},
    ),
    (
        *("1.1B", FULL, 32),
        {"zero_stage": 2, "micro_batch_size": 8, "fused_kernels": True}
        | {"offload_optimizer": "cpu"},
    ),
)


def main(out: Path) -> None:
    """Run all cases, one line each on stdout and in `out`."""
    hardware = detect_hardware()
    is_cuda = hardware.device_type is DeviceType.CUDA
    folder = Path(tempfile.mkdtemp())
    print(f"{hardware}; memory in GiB: predicted / reserved; wall time of the whole trial")
    with Launcher(hardware, model_type="llama", folder=folder) as launcher, out.open("a") as file:
        print(f"warm after {launcher.start():.1f} s", flush=True)
        for number, (model, method, batch, knobs) in enumerate(CASES):
            workload = Workload(
                model=load_model_shape(model if is_cuda else "tiny"),
                seq_len=1024 if is_cuda else 128,
                global_batch_size=batch * hardware.num_devices,
                method=method,
            )
            strategy = Strategy.from_dict(knobs if is_cuda else knobs | {"fused_kernels": False})
            predicted = AnalyticPredictor(workload, hardware).predict(strategy)
            spec = TrialSpec(workload=workload, strategy=strategy, num_ranks=hardware.num_devices)
            trial_folder = folder / str(number)
            trial_folder.mkdir()
            started = time.perf_counter()
            outcome = launcher.run(spec, folder=trial_folder, timeout_s=240)
            wall_s = time.perf_counter() - started
            measured = outcome.measurement
            end = f"{predicted.peak_memory_bytes / GIB:.2f} / "
            if measured is not None:
                peak = measured.peak_memory_bytes / GIB
                end += f"{peak:.2f}, {measured.tokens_per_second:,.0f} tokens/s"
            elif outcome.failure is not None:
                end += outcome.failure.kind
            print(f"{workload.model.name} {method} {strategy}: {end}; {wall_s:.1f} s", flush=True)
            record = {
                "model": workload.model.name,
                "method": str(method),
                "seq_len": workload.seq_len,
                "global_batch_size": workload.global_batch_size,
                "strategy": strategy.to_dict(),
                "prediction": asdict(predicted),
                "outcome": asdict(outcome),
                "wall_s": wall_s,
            }
            file.write(json.dumps(record) + "\n")
            file.flush()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
