"""Predicted and measured memory of ZeRO-3 with weights and optimizer on the host.

    python tests/benchmarks/zero3_offload.py OUT.jsonl [--seconds 345] [--only WORDS]

Each strategy runs as a trial of the project's own launcher; a line says what was predicted of
reserved, allocated and host memory, between what bounds, and what was measured. Then engines are
looked into that no trial shows: built by `deepspeed.zero.Init` and around a model that is whole,
and what saving a checkpoint takes of device and host. A run that was cut off goes on where it
stopped; with --seconds 0 it prints what is there. On the CPU a tiny model takes the place of
every other, to try the script.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from autotune.launch.launcher import Launcher
from autotune.launch.rank_environment import rank_environment
from autotune.machine.extensions import compiled_extension, remove_abandoned_locks
from autotune.machine.hardware import DeviceType, Hardware, detect_hardware
from autotune.predictor import AnalyticPredictor
from autotune.question.workload import ModelShape, Workload, load_model_shape
from autotune.space.strategy import Strategy
from autotune.trials.trial import Prediction, TrialSpec

GIB = 2**30
_SEQ_LEN, _SEQ_LEN_ON_CPU = 1024, 64
_LONGEST_S = 100.0
_SHORTEST_S = 15.0
"""With less left nothing is begun."""

_LLAMA_3_8B = {
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": False,
}
"""Llama-3-8B's; with fewer layers the device does the same, and the host holds less."""

_BOTH = {"offload_optimizer": "cpu", "offload_param": "cpu"}
_KEPT: dict[str, Any] = {"checkpoint_interval": 1}
_CASES: tuple[tuple[str, int, int, dict[str, Any]], ...] = (
    # The model, micro-batch, micro-steps of a step, and what else the strategy is.
    ("1.1B", 4, 1, _BOTH | _KEPT),
    ("1.1B", 8, 2, _BOTH),
    ("8B of 8 layers", 1, 2, _BOTH | _KEPT),
    ("8B of 8 layers", 4, 1, _BOTH),
    ("1.1B", 4, 1, {"offload_param": "cpu"} | _KEPT),
    ("1.1B", 8, 1, {"offload_optimizer": "cpu"}),
    ("3B", 2, 1, _BOTH | _KEPT),
    ("8B", 1, 1, {"offload_param": "cpu"} | _KEPT),
    ("1.1B", 4, 1, {"offload_optimizer": "cpu", "offload_ratio": 0.5} | _KEPT),
    ("7B", 1, 1, _BOTH | _KEPT | {"master_weights": "bf16"}),
    ("8B of 8 layers", 2, 1, {"offload_param": "cpu"}),
    ("3B", 4, 1, _BOTH),
    ("3B", 4, 2, {"offload_optimizer": "cpu"} | _KEPT),
)
_LOOKS: tuple[tuple[str, str, dict[str, Any]], ...] = (
    # The model, how it is built, and the strategy.
    ("1.1B", "zero.Init", {"zero_stage": 3} | _BOTH | _KEPT),
    ("1.1B", "whole", {"zero_stage": 3} | _BOTH | _KEPT),
    ("1.1B", "zero.Init", {"zero_stage": 1} | _KEPT),
)


def main() -> None:
    """Run what is missing, and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--seconds", type=float, default=345.0)
    parser.add_argument("--only", default="", help="cases whose names hold these words")
    parser.add_argument("--look", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.look is not None:
        _look(given.look)
        return
    if not given.seconds:
        for line in _read(given.out):
            _print(line)
        return
    end = time.monotonic() + given.seconds
    hardware, done = detect_hardware(), {line["key"] for line in _read(given.out)}
    hardware = replace(hardware, num_devices=1)
    _compile_cpu_adam(hardware)
    wanted = [key for key in (*_trials(), *_looks()) if given.only in key and key not in done]
    with given.out.open("a") as out, tempfile.TemporaryDirectory() as folder:
        for line in _lines(wanted, hardware, Path(folder), end):
            out.write(json.dumps(line) + "\n")
            out.flush()
            _print(line)


def _compile_cpu_adam(hardware: Hardware) -> None:
    """Where nobody has: a trial would be charged for it."""
    if compiled_extension("cpu_adam"):
        return
    started = time.monotonic()
    command = [sys.executable, "-m", "autotune.worker.extension", "CPUAdamBuilder"]
    subprocess.run(command, env=rank_environment(hardware), capture_output=True, check=True)
    print(f"compiled CPU Adam in {time.monotonic() - started:.0f} s", flush=True)


def _trials() -> dict[str, tuple[str, int, dict[str, Any]]]:
    return {
        f"{model}, micro-batch {micro} x {steps}: {_words(knobs)}": (
            model,
            micro * steps,
            {"zero_stage": 3, "micro_batch_size": micro} | knobs,
        )
        for model, micro, steps, knobs in _CASES
    }


def _looks() -> dict[str, tuple[str, str, dict[str, Any]]]:
    return {
        f"{model}, built {built}, saved: {_words(knobs)}": (model, built, knobs)
        for model, built, knobs in _LOOKS
    }


def _words(knobs: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in knobs.items())


def _lines(
    wanted: list[str], hardware: Hardware, folder: Path, end: float
) -> Iterator[dict[str, Any]]:
    """What comes of each case, until there is no time left."""
    trials, looks = _trials(), _looks()
    with Launcher(hardware, model_type="llama", folder=folder) as launcher:
        if any(key in trials for key in wanted):
            print(f"warm after {launcher.start():.1f} s", flush=True)
        for number, key in enumerate(wanted):
            left = end - time.monotonic()
            if left < _SHORTEST_S:
                print("the seconds are over", flush=True)
                return
            own = folder / str(number)
            own.mkdir()
            allowed = min(left, _LONGEST_S)
            spec = _spec(*(trials[key] if key in trials else _of_look(looks[key])), hardware)
            prediction = AnalyticPredictor(spec.workload, hardware).predict(spec.strategy)
            line: dict[str, Any] = {"key": key, "prediction": asdict(prediction)}
            if key in trials:
                outcome = launcher.run(spec, folder=own, timeout_s=allowed)
                yield line | {"outcome": asdict(outcome)}
            else:
                launcher.close()
                yield line | {"looked": _looked(spec, looks[key][1], own, hardware, allowed)}


def _spec(model: str, batch: int, knobs: dict[str, Any], hardware: Hardware) -> TrialSpec:
    is_cuda = hardware.device_type is DeviceType.CUDA
    return TrialSpec(
        workload=Workload(
            model=_shape(model) if is_cuda else load_model_shape("tiny"),
            seq_len=_SEQ_LEN if is_cuda else _SEQ_LEN_ON_CPU,
            global_batch_size=batch,
        ),
        strategy=Strategy.from_dict(knobs),
        num_ranks=1,
        timed_steps=2,
        composes=False,
    )


def _of_look(look: tuple[str, str, dict[str, Any]]) -> tuple[str, int, dict[str, Any]]:
    model, _, knobs = look
    return model, 4, {"micro_batch_size": 4} | knobs


def _shape(model: str) -> ModelShape:
    name, _, layers = model.partition(" of ")
    if name != "8B":
        return load_model_shape(name)
    with tempfile.TemporaryDirectory() as folder:
        config = _LLAMA_3_8B | {"num_hidden_layers": int(layers.split()[0]) if layers else 32}
        Path(folder, "config.json").write_text(json.dumps(config))
        return replace(load_model_shape(folder), name=model)


def _looked(
    spec: TrialSpec, built: str, folder: Path, hardware: Hardware, seconds: float
) -> dict[str, Any]:
    """What a process of its own found out; the reason where it found nothing."""
    # A process that was killed as it loaded an extension leaves its lock.
    remove_abandoned_locks()
    asked = folder / "asked.json"
    asked.write_text(json.dumps({"spec": spec.to_dict(), "built": built}))
    environment = rank_environment(hardware) | {"LOCAL_RANK": "0", "RANK": "0", "WORLD_SIZE": "1"}
    with (folder / "err").open("w") as err:
        try:
            subprocess.run(
                [sys.executable, __file__, "unused", "--look", str(asked)],
                env=environment,
                stdout=err,
                stderr=err,
                timeout=seconds,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return {"failure": f"no answer within {seconds:.0f} s"}
    found = folder / "found.json"
    if not found.exists():
        return {"failure": (folder / "err").read_text(errors="replace")[-1500:]}
    looked: dict[str, Any] = json.loads(found.read_text())
    return looked


def _look(asked: Path) -> None:
    """Build an engine, train two steps, save; write down what device and host held."""
    import os

    import deepspeed
    from checkpoint_memory import HeldMemory, save_peaks

    from autotune.worker.engine import build_engine
    from autotune.worker.process_group import join
    from autotune.worker.samples import micro_batch

    # As in trials: all that is sent goes through gloo where there is no GPU.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    question = json.loads(asked.read_text())
    spec = TrialSpec.from_dict(question["spec"])
    kind = DeviceType(os.environ["AUTOTUNE_DEVICE_TYPE"])
    device = join(asked.parent, rank=0, num_ranks=1, device_type=kind)
    memory, found = HeldMemory(device), {}
    if question["built"] == "whole":
        _without_zero_init()
    engine = build_engine(spec, device).engine
    found["initialised"] = memory.peaks()
    for step in range(2):
        for micro in range(engine.gradient_accumulation_steps()):
            ids = micro_batch(spec, data_rank=0, step=step, micro=micro).to(device)
            engine.backward(engine(input_ids=ids, labels=ids, use_cache=False).loss)
            engine.step()
    found["trained"] = memory.peaks()
    found |= save_peaks(engine, memory, asked.parent / "saved")
    (asked.parent / "found.json").write_text(json.dumps(found))
    # As a trial's rank: destructors of process groups may hang.
    os._exit(0)


def _without_zero_init() -> None:
    """Build the model as who knows nothing of ZeRO-3 does: whole, on the host."""
    import contextlib

    import deepspeed

    deepspeed.zero.Init = lambda **_: contextlib.nullcontext()


def _read(out: Path) -> list[dict[str, Any]]:
    lines = out.read_text(encoding="utf-8").splitlines() if out.exists() else []
    return list({line["key"]: line for line in map(json.loads, lines)}.values())


def _print(line: dict[str, Any]) -> None:
    prediction = Prediction.from_dict(line["prediction"])
    print(line["key"], flush=True)
    if "looked" in line:
        _print_looked(prediction, line["looked"])
        return
    outcome: dict[str, Any] = line["outcome"]
    measured = outcome["measurement"]
    if measured is None:
        print(f"    {outcome['duration_s']:.0f} s: {outcome['failure']}", flush=True)
        return
    _print_row(
        "reserved",
        measured["peak_reserved_bytes"],
        prediction.peak_memory_bytes,
        prediction.peak_memory_lower_bytes,
        prediction.peak_memory_upper_bytes,
    )
    allocated = prediction.peak_allocated_bytes
    _print_row("allocated", measured["peak_allocated_bytes"], allocated)
    _print_row("host", measured["host_memory_bytes"], *_host(prediction))
    print(
        f"    {outcome['duration_s']:.0f} s, peak at: {prediction.moment}; "
        f"{measured['num_alloc_retries']} retries",
        flush=True,
    )


def _host(prediction: Prediction) -> tuple[int, ...]:
    """What is predicted of the host, with bounds where there are any."""
    bounds = ("host_memory_lower_bytes", "host_memory_upper_bytes")
    names = [name for name in bounds if hasattr(prediction, name)]
    return (prediction.host_memory_bytes, *(getattr(prediction, name) for name in names))


def _print_row(name: str, measured: int, expected: int, *bounds: int) -> None:
    words = ""
    if bounds:
        lower, upper = bounds
        verdict = "inside" if lower <= measured <= upper else "OUTSIDE"
        words = f" [{lower / GIB:.2f}, {upper / GIB:.2f}] {verdict}"
    off = f" ({expected / measured - 1:+.1%})" if measured else ""
    print(f"    {name:10}{measured / GIB:8.2f}, predicted {expected / GIB:8.2f}{words}{off}")
    sys.stdout.flush()


def _print_looked(prediction: Prediction, looked: dict[str, Any]) -> None:
    if "failure" in looked:
        print(f"    {looked['failure']}", flush=True)
        return
    for moment, sizes in looked.items():
        words = ", ".join(f"{name} {size / GIB:.2f}" for name, size in sizes.items())
        print(f"    {moment}: {words}", flush=True)
    host = ", ".join(f"{size / GIB:.2f}" for size in _host(prediction))
    print(f"    predicted host: {host}", flush=True)


if __name__ == "__main__":
    main()
