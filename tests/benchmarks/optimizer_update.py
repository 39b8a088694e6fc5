"""Time of the bare step of each optimizer on this device, beside its prediction.

    python tests/benchmarks/optimizer_update.py OUT.jsonl [--models 1.1B 3B] [--seconds 100]

Without ZeRO's copies, norms and clipping: weights have gradients, and the optimizer steps.
Three layouts: `flat` is what ZeRO hands over, one fp32 tensor, or more where bitsandbytes' kernels
could not count one; `flat bf16` the same with bf16 master weights and states; `tensors` each
weight by itself, as without ZeRO. A line for each: picoseconds a parameter by the clock and on the
device alone, kernels launched, picoseconds predicted. On a CPU a tiny model takes the place of
every other, to try the script, and nothing is predicted.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import nn

from autotune.doctor.measure.timing import synchronize
from autotune.knob_values import MasterWeights, Optimizer
from autotune.machine.hardware import Hardware, detect_hardware
from autotune.predictor.memory.states import StatesModel
from autotune.predictor.step_time.optimizer_step import OptimizerStepModel
from autotune.question.workload import Workload, load_model_shape
from autotune.space.optimizers import BITSANDBYTES_MOST_ELEMENTS
from autotune.space.strategy import Strategy

_LEARNING_RATE = 1e-5
_STEPS, _MOST_STEPS_S = 8, 3.0
_OF_TENSORS = (Optimizer.ADAFACTOR, Optimizer.MUON)
"""Which need rows and columns."""

LAYOUTS = ("flat", "flat bf16", "tensors")

Shape = tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Case:
    """One optimizer over one layout of one model."""

    model: str
    layout: str
    optimizer: Optimizer

    @property
    def strategy(self) -> Strategy:
        """What would step so."""
        is_bf16 = self.layout == "flat bf16"
        return Strategy(
            zero_stage=0 if self.layout == "tensors" else 1,
            optimizer=self.optimizer,
            master_weights=MasterWeights.BF16 if is_bf16 else MasterWeights.FP32,
        )


def cases(models: Sequence[str]) -> Iterator[Case]:
    """All that are to be measured; last Muon, which compiles for a minute."""
    last = Optimizer.MUON
    for model in models:
        for layout in LAYOUTS:
            for optimizer in Optimizer:
                if optimizer is not last and (layout == "tensors" or optimizer not in _OF_TENSORS):
                    yield Case(model=model, layout=layout, optimizer=optimizer)
    yield Case(model=models[0], layout="tensors", optimizer=last)


def shapes(workload: Workload) -> list[Shape]:
    """Of each weight of a model: embedding, layers, head."""
    model = workload.model
    hidden = model.hidden_size
    linears = [*model.attention_linears.values(), *model.mlp_linears.values()]
    layer: list[Shape] = [(outputs, inputs) for inputs, outputs in linears]
    layer += [(hidden,), (hidden,)]
    table: Shape = (model.vocab_size, hidden)
    return [table, *model.num_hidden_layers * layer, (hidden,), *([table][: _has_head(model)])]


def _has_head(model: Any) -> int:
    return int(not model.tie_word_embeddings)


def parameters(case: Case, workload: Workload, device: torch.device) -> list[nn.Parameter]:
    """Weights with gradients, in the layout of a case."""
    dtype = torch.bfloat16 if case.layout == "flat bf16" else torch.float32
    laid_out = shapes(workload)
    if case.layout != "tensors":
        total = sum(math.prod(shape) for shape in laid_out)
        num_pieces = -(-total // BITSANDBYTES_MOST_ELEMENTS)
        laid_out = num_pieces * [(total // num_pieces,)]
    made = []
    for shape in laid_out:
        parameter = nn.Parameter(torch.empty(shape, dtype=dtype, device=device).normal_(0, 0.02))
        parameter.grad = torch.empty_like(parameter).normal_(0, 1e-3)
        made.append(parameter)
    return made


def optimizer_of(case: Case, parameters: list[nn.Parameter]) -> Any:
    """As `techniques/optimizers.py` and DeepSpeed's JSON make it."""
    from bitsandbytes import optim

    is_fused = parameters[0].device.type == "cuda"
    match case.optimizer:
        case Optimizer.ADAMW:
            kind: Callable[..., Any] = torch.optim.AdamW
            return kind(parameters, lr=_LEARNING_RATE, weight_decay=0.0, fused=is_fused)
        case Optimizer.SGD:
            return torch.optim.SGD(parameters, lr=_LEARNING_RATE, momentum=0.9)
        case Optimizer.ADAFACTOR:
            return torch.optim.Adafactor(parameters, lr=_LEARNING_RATE, weight_decay=0.0)
        case Optimizer.MUON:
            return _muon(parameters)
    kinds = {
        Optimizer.ADAMW_8BIT: optim.AdamW8bit,
        Optimizer.PAGED_ADAMW_8BIT: optim.PagedAdamW8bit,
        Optimizer.LION: optim.Lion,
        Optimizer.LION_8BIT: optim.Lion8bit,
    }
    return kinds[case.optimizer](parameters, lr=_LEARNING_RATE, weight_decay=0.0)


def _muon(parameters: list[nn.Parameter]) -> Any:
    from deepspeed.runtime.zero.muon.muon_optimizer import MuonWithAuxAdam

    # The first and the last matrix are embedding and head.
    tables = [parameters[0], *parameters[-1:]]
    matrices = [one for one in parameters if one.dim() > 1 and all(one is not t for t in tables)]
    others = [one for one in parameters if all(one is not matrix for matrix in matrices)]
    return MuonWithAuxAdam(
        [
            {"params": matrices, "use_muon": True, "lr": _LEARNING_RATE, "momentum": 0.95},
            {"params": others, "use_muon": False, "lr": _LEARNING_RATE},
        ]
    )


def step_s(step: Callable[[], Any], device: torch.device) -> float:
    """Seconds of one step by the clock, the device being idle before and after."""
    seconds: list[float] = []
    while len(seconds) < _STEPS and sum(seconds) < _MOST_STEPS_S:
        synchronize(device)
        started = time.perf_counter()
        step()
        synchronize(device)
        seconds.append(time.perf_counter() - started)
    return median(seconds)


def on_the_device(step: Callable[[], Any], device: torch.device) -> tuple[float, int, list[str]]:
    """Seconds that kernels of one step run, how many there are, and the longest of them."""
    from torch.profiler import ProfilerActivity, profile

    if device.type != "cuda":
        step()
        return 0.0, 0, []
    with profile(activities=[ProfilerActivity.CUDA]) as seen:
        step()
        synchronize(device)
    rows = sorted(seen.key_averages(), key=lambda row: -row.self_device_time_total)
    kernels = [row for row in rows if row.self_device_time_total > 0]
    longest = [f"{row.count} x {row.key[:60]}" for row in kernels[:3]]
    total_s = sum(row.self_device_time_total for row in kernels) * 1e-6
    return total_s, sum(row.count for row in kernels), longest


def measured(case: Case, workload: Workload, device: torch.device) -> dict[str, Any]:
    """One line of the record."""
    made = parameters(case, workload, device)
    num = sum(parameter.numel() for parameter in made)
    optimizer = optimizer_of(case, made)
    optimizer.step()
    optimizer.step()
    seconds = step_s(optimizer.step, device)
    device_s, num_kernels, longest = on_the_device(optimizer.step, device)
    return {
        "parameters": num,
        "tensors": len(made),
        "step_s": seconds,
        "device_s": device_s,
        "kernels": num_kernels,
        "longest": longest,
    }


def predicted_s(case: Case, workload: Workload, hardware: Hardware) -> float:
    """The same, as the predictor has it."""
    machine = replace(hardware, num_devices=1)
    states = StatesModel(workload, machine)
    shard = states.shards(case.strategy)[0]
    return OptimizerStepModel(workload, machine, states).optimizer_s(case.strategy, shard)


def machine_of(hardware: Hardware, device: torch.device) -> dict[str, Any]:
    """What the device is, as far as it bears on this."""
    told: dict[str, Any] = {"device": hardware.device_kind, "torch": torch.__version__}
    if device.type == "cuda":
        import pynvml

        pynvml.nvmlInit()
        handle = pynvml.nvmlDeviceGetHandleByIndex(0)
        told["multiprocessors"] = torch.cuda.get_device_properties(0).multi_processor_count
        told["most_mhz"] = pynvml.nvmlDeviceGetMaxClockInfo(handle, pynvml.NVML_CLOCK_SM)
        told["mhz"] = pynvml.nvmlDeviceGetClockInfo(handle, pynvml.NVML_CLOCK_SM)
        pynvml.nvmlShutdown()
    return told


def line(case: Case, found: dict[str, Any], predicted: float | None) -> str:
    """For a person, in picoseconds a parameter."""
    per = 1e12 / found["parameters"]
    told = f"{per * predicted:8.1f}" if predicted is not None else "       -"
    return (
        f"{case.model:6} {case.layout:10} {case.optimizer:18} "
        f"{per * found['step_s']:9.1f} {per * found['device_s']:9.1f} {told} "
        f"{found['kernels']:8} {found['tensors']:8}  {'; '.join(found['longest'][:1])}"
    )


def main(models: Sequence[str], out: Path, seconds: float) -> None:
    """Measure until the time is over."""
    end = time.monotonic() + seconds
    hardware = detect_hardware(1 if torch.cuda.is_available() else None)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cpu":
        models = ("tiny",)
    print("ps a parameter:                         step    device  predicted  kernels  tensors")
    with out.open("w", encoding="utf-8") as record:
        record.write(json.dumps(machine_of(hardware, device)) + "\n")
        for case in cases(models):
            if time.monotonic() > end:
                print("out of time")
                return
            workload = Workload(
                model=load_model_shape(case.model), seq_len=128, global_batch_size=1
            )
            try:
                found = measured(case, workload, device)
            except Exception as error:
                print(f"{case.model} {case.layout} {case.optimizer}: {error!r:.200}")
                continue
            finally:
                if device.type == "cuda":
                    torch.cuda.empty_cache()
            predicted = predicted_s(case, workload, hardware) if device.type == "cuda" else None
            told = {"model": case.model, "layout": case.layout, "optimizer": case.optimizer}
            record.write(json.dumps({**told, **found, "predicted_s": predicted}) + "\n")
            record.flush()
            print(line(case, found, predicted), flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--models", nargs="+", default=("1.1B", "3B"))
    parser.add_argument("--seconds", type=float, default=100.0)
    arguments = parser.parse_args()
    main(arguments.models, arguments.out, arguments.seconds)
