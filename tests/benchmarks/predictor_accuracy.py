"""How far the analytic predictor is from measured trials.

    python tests/benchmarks/predictor_accuracy.py POINTS.jsonl

Each line of POINTS.jsonl is one trial on one H100 80GB: architecture, knobs, `peak_allocated_gib`,
`peak_reserved_gib`, `tokens_per_second`.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median, quantiles
from typing import Any

from autotune.knob_values import MasterWeights, Optimizer
from autotune.machine.hardware import DEVICE_KINDS, DeviceType, Hardware
from autotune.predictor import AnalyticPredictor
from autotune.question.workload import Method, ModelShape, Workload
from autotune.space.strategy import Strategy
from autotune.trials.trial import Prediction

GIB = 2**30

PROVENANCE = """\
From arithmetic alone: bytes of weights, states, gradients, buckets, activations and logits, and
the counts of operations and of pointwise traffic. Taken from measurement, some of it on trials
like these: the attained parts of the peak rates (0.70 matrix products, 0.30 attention, 0.60
bandwidth), the host's 6 ms a layer (3.5 times that with ZeRO-3), Adafactor's 1.8 ms a layer, the
fragmented share of the allocator (0.25, with Liger 0.05). Assumed: PCIe, host memory and links."""

H100 = DEVICE_KINDS["H100-80GB"]
HARDWARE = Hardware(
    device_type=DeviceType.CUDA,
    device_kind=H100.name,
    num_devices=1,
    device_memory_bytes=H100.memory_bytes,
    host_memory_bytes=256 * GIB,
    flops_per_s=H100.flops_per_s,
    memory_bytes_per_s=H100.memory_bytes_per_s,
)


def read_point(point: Mapping[str, Any]) -> tuple[Workload, Strategy]:
    """The question and the strategy that one line stands for."""
    arch = point["arch"]
    rank = point["lora_rank"] or 0
    shape = ModelShape(
        name=point["model_type"],
        model_type=point["model_type"],
        head_dim=arch["hidden_size"] // arch["num_attention_heads"],
        max_position_embeddings=2**17,
        tie_word_embeddings=point["tie_word_embeddings"],
        embedding_size=arch["hidden_size"],
        **arch,
    )
    workload = Workload(
        model=shape,
        seq_len=point["seq_len"],
        global_batch_size=point["micro_batch_size"] * point["gradient_accumulation_steps"],
        method=Method.LORA if rank else Method.FULL,
        lora_rank=rank or 16,
    )
    strategy = Strategy(
        zero_stage=point["zero_stage"],
        micro_batch_size=point["micro_batch_size"],
        checkpoint_interval=0 if point["activation_checkpointing"] == "none" else 1,
        optimizer=(Optimizer.ADAMW_8BIT if point["optimizer"] == "adamw8bit" else Optimizer.ADAMW),
        master_weights=(
            MasterWeights.BF16 if point["bf16_master_and_states"] else MasterWeights.FP32
        ),
        fused_kernels=point["liger_kernel"],
        lora_rank=rank,
    )
    return workload, strategy


def allocated_bytes(prediction: Prediction) -> int:
    """The predicted peak of live tensors: the reserved peak without the allocator's part."""
    return prediction.peak_memory_bytes - prediction.breakdown_bytes["allocator"]


def error_line(name: str, errors: Sequence[float]) -> str:
    """Median and 95th percentile of relative errors, and their bias."""
    absolute = sorted(abs(error) for error in errors)
    p95 = quantiles(absolute, n=20, method="inclusive")[-1]
    return (
        f"{name:10} median {median(absolute):6.1%}   95th percentile {p95:6.1%}   "
        f"largest {absolute[-1]:6.1%}   median signed {median(errors):+6.1%}"
    )


def main(path: Path) -> None:
    """Print the table and the errors."""
    errors: dict[str, list[float]] = {"allocated": [], "reserved": [], "tokens/s": []}
    num_below = num_above = 0
    print("allocated, reserved [lower, upper] in GiB and tokens/s, predicted/measured\n")
    for line in path.read_text(encoding="utf-8").splitlines():
        point = json.loads(line)
        workload, strategy = read_point(point)
        prediction = AnalyticPredictor(workload, HARDWARE).predict(strategy)
        pairs = {
            "allocated": (allocated_bytes(prediction) / GIB, point["peak_allocated_gib"]),
            "reserved": (prediction.peak_memory_bytes / GIB, point["peak_reserved_gib"]),
            "tokens/s": (prediction.tokens_per_second, point["tokens_per_second"]),
        }
        for name, (predicted, measured) in pairs.items():
            errors[name].append(predicted / measured - 1)
        lower = prediction.peak_memory_lower_bytes / GIB
        upper = prediction.peak_memory_upper_bytes / GIB
        num_below += point["peak_reserved_gib"] < lower
        num_above += point["peak_reserved_gib"] > upper
        size = workload.model.num_parameters / 1e9
        print(
            f"{pairs['allocated'][0]:5.1f}/{pairs['allocated'][1]:5.1f}  "
            f"{pairs['reserved'][0]:5.1f}/{pairs['reserved'][1]:5.1f} "
            f"[{lower:5.1f},{upper:6.1f}]  "
            f"{pairs['tokens/s'][0]:6.0f}/{pairs['tokens/s'][1]:6.0f}  "
            f"{prediction.moment:15} {size:4.1f}B x {workload.seq_len}, {strategy}"
        )
    print()
    for name, values in errors.items():
        print(error_line(name, values))
    total = len(errors["reserved"])
    print(f"reserved below the lower bound {num_below}, above the upper {num_above}, of {total}")
    print(f"\n{PROVENANCE}")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(Path(sys.argv[1]))
