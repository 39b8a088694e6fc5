"""Routed experts on one device: their products, what routing moves, and trials of a mixture.

    python tests/benchmarks/experts.py --out FOLDER [--seconds 170] [--only trials]
    python tests/benchmarks/experts.py --report FOLDER

One layer has the sizes of Qwen3-30B-A3B. `products.jsonl`: grouped products by tokens, number of
groups and how evenly rows are spread over them, beside one dense product of the same work.
`routing.jsonl`: the other kernels of a layer, forward and backward, and their bytes per second.
`spread.jsonl`: rows of the busiest expert and of partial tiles, with random routers, on the host.
`trials.jsonl`: four such layers under each implementation, LoRA with and without adapters on the
experts, predicted before beside measured. `--report` predicts again, with traced activations. On a
CPU a tiny mixture takes the place, to try the script.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch

from autotune.doctor.measure.timing import synchronize
from autotune.knob_values import Experts
from autotune.launch.launcher import Launcher
from autotune.machine.hardware import DeviceType, Hardware, detect_hardware
from autotune.machine.software import detect_software
from autotune.predictor import AnalyticPredictor
from autotune.question.workload import Method, Workload, load_model_shape
from autotune.space.compatibility import conflict
from autotune.space.strategy import Strategy
from autotune.trials.trial import Prediction, TrialSpec

GIB = 2**30
_MOST_TRIAL_S = 60.0
_REPEATS, _MOST_S = 7, 1.0
_SKEW = 0.5
"""Standard deviation of the logarithm of an expert's share, where rows are spread unevenly."""

Record = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """One layer."""

    hidden: int
    width: int
    num_experts: int
    choices: int
    tokens: tuple[int, ...]
    groups: tuple[int, ...]


REAL = Sizes(
    hidden=2048,
    width=768,
    num_experts=128,
    choices=8,
    tokens=(2048, 8192, 32768),
    groups=(8, 32, 128),
)
TINY = Sizes(hidden=64, width=32, num_experts=8, choices=2, tokens=(64,), groups=(2, 8))


def config(sizes: Sizes) -> Record:
    """A config.json of four layers."""
    is_real = sizes is REAL
    return {
        "model_type": "qwen3_moe",
        "hidden_size": sizes.hidden,
        "intermediate_size": 3 * sizes.hidden,
        "moe_intermediate_size": sizes.width,
        "num_hidden_layers": 4,
        "num_attention_heads": 32 if is_real else 4,
        "num_key_value_heads": 4 if is_real else 2,
        "head_dim": 128 if is_real else 16,
        "num_experts": sizes.num_experts,
        "num_experts_per_tok": sizes.choices,
        "vocab_size": 151936 if is_real else 256,
        "max_position_embeddings": 4096,
        "norm_topk_prob": True,
        "tie_word_embeddings": False,
    }


def seconds_of(work: Callable[[], object], device: torch.device) -> float:
    """The median time of some work on the device."""
    work()
    synchronize(device)
    times: list[float] = []
    began = time.perf_counter()
    while len(times) < _REPEATS and time.perf_counter() - began < _MOST_S:
        start = time.perf_counter()
        work()
        synchronize(device)
        times.append(time.perf_counter() - start)
    return median(times)


def offsets(rows: int, num_groups: int, device: torch.device, *, is_even: bool) -> torch.Tensor:
    """Where each group ends, [groups] int32."""
    generator = torch.Generator().manual_seed(0)
    shares = torch.ones(num_groups)
    if not is_even:
        shares = torch.exp(_SKEW * torch.randn(num_groups, generator=generator))
    ends = (shares.cumsum(0) / shares.sum() * rows).round().to(torch.int32)
    ends[-1] = rows
    return ends.to(device)


def spread() -> Iterator[Record]:
    """How random routers spread rows that are independent, or alike as those of a text are."""
    generator = torch.Generator().manual_seed(0)
    for num_experts, choices in ((128, 8), (64, 6), (8, 2)):
        for tokens in (2048, 16384):
            for alike in (0.0, 0.5):
                rows = torch.randn(tokens, REAL.hidden, generator=generator)
                rows += alike * torch.randn(1, REAL.hidden, generator=generator)
                rows /= rows.pow(2).mean(-1, keepdim=True).sqrt()
                weights = 0.02 * torch.randn(REAL.hidden, num_experts, generator=generator)
                chosen = (rows @ weights).topk(choices, dim=-1).indices.flatten()
                sizes = torch.bincount(chosen, minlength=num_experts).float()
                tile = 64 if sizes.mean() <= 128 else 128
                padded = float((torch.ceil(sizes / tile) * tile).sum() / sizes.sum())
                yield {
                    "experts": num_experts,
                    "choices": choices,
                    "tokens": tokens,
                    "alike": alike,
                    "busiest": float(sizes.max() / sizes.mean()),
                    "padded": padded,
                    "padded_if_even": 1 + tile / 2 / float(sizes.mean()),
                }


def products(sizes: Sizes, device: torch.device) -> Iterator[Record]:
    """Grouped products of a layer, forward and both of backward; dense ones beside."""
    make = partial(torch.randn, device=device, dtype=torch.bfloat16)
    for tokens in sizes.tokens:
        rows = tokens * sizes.choices
        for inputs, outputs in ((sizes.hidden, 2 * sizes.width), (sizes.width, sizes.hidden)):
            left, gradient = make(rows, inputs), make(rows, outputs)
            of_one = make(outputs, inputs)
            flops = 2.0 * rows * inputs * outputs
            dense_s = seconds_of(partial(torch.mm, left, of_one.T), device)
            for num_groups in sizes.groups:
                weight = make(num_groups, outputs, inputs)
                for is_even in (True, False):
                    ends = offsets(rows, num_groups, device, is_even=is_even)
                    grouped = partial(torch._grouped_mm, offs=ends)
                    works: dict[str, Callable[[], object]] = {
                        "forward": partial(grouped, left, weight.transpose(-2, -1)),
                        "of input": partial(grouped, gradient, weight),
                        "of weight": partial(grouped, gradient.T, left),
                    }
                    for name, work in works.items():
                        took_s = seconds_of(work, device)
                        yield {
                            "product": name,
                            "tokens": tokens,
                            "rows": rows,
                            "inputs": inputs,
                            "outputs": outputs,
                            "groups": num_groups,
                            "is_even": is_even,
                            "busiest": _busiest(ends),
                            "seconds": took_s,
                            "tflops": flops / took_s / 1e12,
                            "dense_seconds": dense_s,
                            "dense_tflops": flops / dense_s / 1e12,
                        }


def _busiest(ends: torch.Tensor) -> float:
    """Rows of the largest group over those of the mean one."""
    sizes = torch.diff(ends.cpu(), prepend=torch.zeros(1, dtype=torch.int32)).float()
    return float(sizes.max() / sizes.mean())


def routing(sizes: Sizes, device: torch.device) -> Iterator[Record]:
    """The kernels of a layer that are no products, and the bytes that they must move."""
    for tokens in sizes.tokens:
        rows, hidden = tokens * sizes.choices, sizes.hidden
        make = partial(torch.randn, device=device, dtype=torch.bfloat16)
        chosen = torch.randint(sizes.num_experts, (rows,), device=device)
        _, order = torch.sort(chosen)
        inverse, source = torch.argsort(order), order // sizes.choices
        states, many, weights = make(tokens, hidden), make(rows, hidden), make(rows, 1)
        gate, up = make(rows, sizes.width), make(rows, sizes.width)
        few = torch.zeros_like(states)
        row = 2 * hidden
        zeros = torch.zeros_like(many)
        works: dict[str, tuple[Callable[[], object], int]] = {
            "sort of choices": (partial(torch.sort, chosen), 32 * rows),
            "rows gathered": (partial(_rows_at, states, source), 2 * row * rows),
            "gathering's backward": (
                partial(_put, few, source, many, accumulate=True),
                row * (rows + 3 * tokens),
            ),
            "reordering": (partial(_rows_at, many, inverse), 2 * row * rows),
            "reordering's backward": (
                partial(_put, zeros, inverse, many, accumulate=True),
                3 * row * rows,
            ),
            "reordering's backward, not accumulated": (
                partial(_put, zeros, inverse, many, accumulate=False),
                3 * row * rows,
            ),
            "weighing": (partial(torch.mul, many, weights), 2 * row * rows),
            "adding up": (
                partial(torch.sum, many.view(tokens, sizes.choices, hidden), dim=1),
                row * (rows + tokens),
            ),
            "gated activation": (partial(_gate, gate, up), 10 * rows * sizes.width),
        }
        for name, (work, moved) in works.items():
            took_s = seconds_of(work, device)
            yield {
                "kernel": name,
                "tokens": tokens,
                "seconds": took_s,
                "bytes": moved,
                "gb_per_s": moved / took_s / 1e9,
            }
        yield from _layers(sizes, tokens, device)


def _rows_at(rows: torch.Tensor, at: torch.Tensor) -> torch.Tensor:
    return rows[at]


def _put(
    into: torch.Tensor, at: torch.Tensor, rows: torch.Tensor, *, accumulate: bool
) -> torch.Tensor:
    return into.index_put((at,), rows, accumulate=accumulate)


def _gate(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.silu(gate) * up


def _layers(sizes: Sizes, tokens: int, device: torch.device) -> Iterator[Record]:
    """A whole block of experts in each implementation, forward and backward, weights frozen."""
    from transformers import AutoConfig, AutoModelForCausalLM

    from autotune.techniques.blocks import decoder_layers, mlp_blocks
    from autotune.techniques.kernels import choose_experts

    fields = config(sizes) | {"num_hidden_layers": 1, "vocab_size": 256}
    told = AutoConfig.for_model(fields.pop("model_type"), **fields)
    with device:
        model = AutoModelForCausalLM.from_config(told, dtype=torch.bfloat16)
    model.requires_grad_(False)
    block: Any = mlp_blocks(decoder_layers(model, 1))[0]
    rows = torch.randn(
        1, tokens, sizes.hidden, device=device, dtype=torch.bfloat16, requires_grad=True
    )
    for experts in (Experts.GROUPED_MM, Experts.EAGER):
        choose_experts(model, experts)
        with torch.no_grad():
            forward_s = seconds_of(partial(block, rows), device)
        yield {
            "block": str(experts),
            "tokens": tokens,
            "forward_seconds": forward_s,
            "seconds": seconds_of(partial(_both, block, rows), device),
        }


def _both(block: Any, rows: torch.Tensor) -> None:
    out = block(rows)
    (out[0] if isinstance(out, tuple) else out).backward(torch.ones_like(rows))


@dataclass(frozen=True, kw_only=True)
class Case:
    """One trial."""

    experts: Experts
    targets: tuple[str, ...]
    seq_len: int
    micro_batch: int

    @property
    def strategy(self) -> Strategy:
        """How it trains."""
        return Strategy(
            zero_stage=1,
            micro_batch_size=self.micro_batch,
            lora_rank=16,
            experts_implementation=self.experts,
        )

    def workload(self, folder: Path, hardware: Hardware) -> Workload:
        """What it trains: two micro-batches a step."""
        model = load_model_shape(str(folder))
        return Workload(
            model=replace(model, name="qwen3-30b-a3b-4-layers"),
            seq_len=self.seq_len,
            global_batch_size=2 * self.micro_batch * hardware.num_devices,
            method=Method.LORA,
            lora_targets=self.targets,
        )


def cases(*, is_real: bool) -> list[Case]:
    """The most telling first. Copies of weights for each token leave room for few tokens."""
    plain, on_experts = ("all-linear",), ("all-linear", "experts")
    long, short = ((2048, 8), (256, 1)) if is_real else ((64, 2), (32, 1))
    planned = [
        (Experts.GROUPED_MM, plain, long),
        (Experts.GROUPED_MM, on_experts, long),
        (Experts.GROUPED_MM, plain, (long[0], 1)),
        (Experts.EAGER, plain, long),
        (Experts.BATCHED_MM, plain, short),
        (Experts.GROUPED_MM, plain, short),
        (Experts.EAGER, on_experts, long),
        (Experts.BATCHED_MM, on_experts, short),
    ]
    return [
        Case(experts=experts, targets=targets, seq_len=seq_len, micro_batch=micro_batch)
        for experts, targets, (seq_len, micro_batch) in planned
    ]


def trials(sizes: Sizes, hardware: Hardware, end: float) -> Iterator[Record]:
    """Each case as a real trial, until `end` by the monotonic clock."""
    folder = Path(tempfile.mkdtemp())
    (folder / "config.json").write_text(json.dumps(config(sizes)))
    software = detect_software()
    with Launcher(hardware, model_type="qwen3_moe", folder=folder) as launcher:
        print(f"warm after {launcher.start():.1f} s", flush=True)
        for number, case in enumerate(cases(is_real=sizes is REAL)):
            left = end - time.monotonic()
            if left < _MOST_TRIAL_S / 6:
                print("the seconds are over", flush=True)
                return
            workload = case.workload(folder, hardware)
            line: Record = {"case": asdict(case), "device_kind": hardware.device_kind}
            refused = conflict(case.strategy, workload, hardware, software)
            if refused:
                yield line | {"refused": refused}
                continue
            # Traces take longer than the trial; times do not depend on them.
            predicted = AnalyticPredictor(workload, hardware, traces=False).predict(case.strategy)
            here = folder / str(number)
            here.mkdir()
            outcome = launcher.run(
                TrialSpec(
                    workload=workload,
                    strategy=case.strategy,
                    num_ranks=hardware.num_devices,
                    timed_steps=4,
                ),
                folder=here,
                timeout_s=min(_MOST_TRIAL_S, left),
            )
            line |= {"prediction": asdict(predicted), "outcome": asdict(outcome)}
            errors = here / "rank0.err"
            if outcome.failure is not None and errors.exists():
                line["error"] = errors.read_text(errors="replace")[-2000:]
            yield line


def in_words(line: Record) -> str:
    """One line of the answer."""
    if "product" in line:
        return (
            f"{line['product']:10s} {line['tokens']:6d} tokens, {line['groups']:3d} groups, "
            f"{'even' if line['is_even'] else 'uneven'}: {line['tflops']:.0f} TFLOP/s, "
            f"dense {line['dense_tflops']:.0f}"
        )
    if "padded" in line:
        return (
            f"{line['choices']} of {line['experts']} experts, {line['tokens']} tokens, alike "
            f"{line['alike']}: busiest {line['busiest']:.2f} of the mean, rows with tiles "
            f"{line['padded']:.3f}, counted {line['padded_if_even']:.3f}"
        )
    if "kernel" in line:
        return f"{line['kernel']} of {line['tokens']} tokens: {line['gb_per_s']:.0f} GB/s"
    if "block" in line:
        both, forward = line["seconds"], line["forward_seconds"]
        return f"{line['block']} of {line['tokens']} tokens: {both:.4f} s, forward {forward:.4f}"
    case, words = line["case"], line.get("refused")
    label = (
        f"{case['experts']} {','.join(case['targets'])} {case['seq_len']}x{case['micro_batch']}"
    )
    if words:
        return f"{label}: refused: {words}"
    measured, failure = line["outcome"]["measurement"], line["outcome"]["failure"]
    if measured is None:
        return f"{label}: {failure}"
    predicted = line["prediction"]
    return (
        f"{label}: {measured['tokens_per_second']:,.0f} tokens/s, predicted "
        f"{predicted['tokens_per_second']:,.0f}; {measured['peak_reserved_bytes'] / GIB:.2f} GiB, "
        f"predicted {predicted['peak_memory_bytes'] / GIB:.2f}"
    )


def report(folder: Path) -> None:
    """The records in words, and trials beside what the present code predicts from traces."""
    for name in ("products", "routing", "spread", "trials"):
        path = folder / f"{name}.jsonl"
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        for line in map(json.loads, lines):
            if name == "trials" and "outcome" in line:
                line["prediction"] = asdict(_predicted_again(line))
            print(in_words(line))


def _predicted_again(line: Record) -> Prediction:
    from autotune.machine.hardware_spec import read_hardware

    told = line["case"]
    case = Case(
        experts=Experts(told["experts"]),
        targets=tuple(told["targets"]),
        seq_len=told["seq_len"],
        micro_batch=told["micro_batch"],
    )
    kind = line["device_kind"]
    is_real = kind != "cpu"
    hardware = read_hardware(f"1x{kind}").all_ranks if is_real else detect_hardware()
    folder = Path(tempfile.mkdtemp())
    (folder / "config.json").write_text(json.dumps(config(REAL if is_real else TINY)))
    return AnalyticPredictor(case.workload(folder, hardware), hardware).predict(case.strategy)


def main() -> None:
    """Measure, or report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--report", type=Path)
    parser.add_argument("--seconds", type=float, default=170.0)
    parser.add_argument("--only", choices=("products", "routing", "spread", "trials"))
    options = parser.parse_args()
    if options.report is not None:
        report(options.report)
        return
    if options.out is None:
        parser.error("give --out FOLDER, or --report FOLDER")
    end = time.monotonic() + options.seconds
    options.out.mkdir(parents=True, exist_ok=True)
    hardware = detect_hardware()
    is_cuda = hardware.device_type is DeviceType.CUDA
    sizes, device = (REAL, torch.device("cuda")) if is_cuda else (TINY, torch.device("cpu"))
    # Trials first: the server must be there before this process has taken the device.
    parts: dict[str, Callable[[], Iterator[Record]]] = {
        "trials": partial(trials, sizes, hardware, end - 40),
        "spread": spread,
        "routing": partial(routing, sizes, device),
        "products": partial(products, sizes, device),
    }
    for name, part in parts.items():
        if options.only not in (None, name):
            continue
        with (options.out / f"{name}.jsonl").open("w", encoding="utf-8") as file:
            for line in part():
                print(in_words(line), flush=True)
                file.write(json.dumps(line) + "\n")
                file.flush()
                if name != "trials" and time.monotonic() > end:
                    print("the seconds are over", flush=True)
                    break


if __name__ == "__main__":
    main()
