"""The texts of an exported folder: its README and its launch script.

Does not know how the folder is written. The code to train by is `export_examples.py`'s.
"""

from __future__ import annotations

from html import escape

from autotune.answer.export_examples import (
    accelerate_example,
    deepspeed_example,
    trainer_example,
)
from autotune.answer.export_settings import ExportSettings, settings_of
from autotune.knob_values import LossClass, Optimizer
from autotune.machine.hardware import DeviceType, Hardware
from autotune.names import visible
from autotune.question.workload import Workload
from autotune.space.deepspeed_config import (
    GRADIENT_CLIPPING,
    LEARNING_RATE,
    flattens_parameters,
    is_client_optimizer,
)
from autotune.space.optimizers import OPTIMIZERS
from autotune.space.strategy import Strategy
from autotune.study.summary import StudySummary
from autotune.trials.trial import Prediction, Trial

__all__ = ["guide", "guide_text", "launch_line", "launch_script", "loss_words"]

_SCALE_NOTE = f"""

The optimizer scales gradients for fp16, which DeepSpeed does under ZeRO only. It also clips them,
to a norm of {GRADIENT_CLIPPING:g} (`optimizer.loss_scale.max_norm`): `gradient_clipping`, 0 in the
JSON, would clip them while they are scaled."""


def launch_line(hardware: Hardware, num_nodes: int = 1) -> str:
    """The command that starts `train.py` on every rank.

    Args:
        hardware: one host.
        num_nodes: hosts like it; DeepSpeed finds them in a hostfile.
    """
    if hardware.device_type is DeviceType.CPU:
        launcher = f"deepspeed --num_accelerators {hardware.num_devices}"
    else:
        launcher = f"deepspeed --num_gpus {hardware.num_devices}"
    if num_nodes > 1:
        launcher += f" --num_nodes {num_nodes} --hostfile hostfile"
    return f"{launcher} train.py --deepspeed ds_config.json"


def launch_script(hardware: Hardware, settings: ExportSettings, num_nodes: int = 1) -> str:
    """`launch.sh`: the environment and the launch line, with further arguments passed on."""
    where, hosts = visible(str(hardware)), ""
    lines = "".join(f"{line}\n" for line in settings.shell_lines())
    if num_nodes > 1:
        where = f"{num_nodes} nodes of {where}"
        hosts = f"# hostfile is yours too: a line a host, worker-1 slots={hardware.num_devices}\n"
    return (
        "#!/bin/sh\n"
        f"# Trains on {where}. train.py is yours: README.md has one to start from.\n"
        f"{hosts}"
        "# The environment that the figures belong to. What is set in yours already stays.\n"
        f"{lines}"
        f'{launch_line(hardware, num_nodes)} "$@"\n'
    )


def guide(summary: StudySummary, trial: Trial) -> str:
    """`README.md` of the folder."""
    assert trial.throughput is not None
    workload, speed = summary.workload, f"{trial.tokens_per_second:,.0f}"
    if trial.throughput.relative_half_width < 1:
        speed += f" ± {trial.throughput.half_width:,.0f}"
    runs = f" over {len(trial.confirmations)} runs" if trial.is_confirmed else ""
    gib = trial.peak_memory_bytes / 2**30
    source = f", by {_text(trial.reused_from)}" if trial.reused_from else ""
    predicted = _predicted(trial.prediction) if trial.prediction else ""
    origin = f"""\
Trial {trial.number} of the autotune study {_text(summary.name)}: {workload.model.name},
{workload.seq_len} tokens a sample, {workload.global_batch_size} samples a step, on \
{summary.hardware}.
Measured {speed} tokens/s{runs} and a peak of {gib:.2f} GiB on one device{source}.
{predicted}\
The strategy {loss_words(summary.loss_class(trial), summary.reference)}."""
    settings = settings_of(trial, summary.hardware)
    return guide_text(origin, workload, summary.hardware, trial.strategy, settings)


def _text(name: str) -> str:
    """A folder's name in Markdown, which passes HTML on."""
    return escape(visible(name), quote=False)


def _predicted(prediction: Prediction) -> str:
    """What had been expected, as a line of its own."""
    lower, peak, upper = (
        size / 2**30
        for size in (
            prediction.peak_memory_lower_bytes,
            prediction.peak_memory_bytes,
            prediction.peak_memory_upper_bytes,
        )
    )
    return (
        f"Predicted before: {prediction.tokens_per_second:,.0f} tokens/s and {peak:.2f} GiB, "
        f"between {lower:.2f} and {upper:.2f} GiB.\n"
    )


def loss_words(loss_class: LossClass, reference: Strategy) -> str:
    """What a loss class means, after "the strategy"."""
    if loss_class is LossClass.NEUTRAL:
        return "does not change what is learned"
    return f"can change what is learned, compared with: {reference}"


def guide_text(
    origin: str,
    workload: Workload,
    hardware: Hardware,
    strategy: Strategy,
    settings: ExportSettings,
    *,
    is_measured: bool = True,
) -> str:
    """`README.md` of a folder to train with.

    Args:
        origin: where the strategy comes from, and what its figures are.
        workload: what it trains.
        hardware: all ranks.
        strategy: how.
        settings: of the environment that its figures belong to.
        is_measured: whether the figures were measured, and not predicted alone.
    """
    as_run = ", as the trial ran with it" if is_measured else "; nothing has run with it yet"
    as_had = ", as the trial had it" if is_measured else ""
    figures = "what was measured and predicted" if is_measured else "what was predicted"
    return f"""\
# {strategy}

{origin}

| file | what it is |
|---|---|
| `ds_config.json` | DeepSpeed's configuration{as_run} |
| `strategy.yaml` | what that JSON cannot hold: checkpointing, LoRA, kernels, some optimizers |
| `launch.sh` | the environment{as_had}, and the launch line |
| `provenance.json` | {"study, versions, hardware" if is_measured else "hardware"}, {figures} |

The learning rate, {LEARNING_RATE:g}, is a placeholder. Set yours in {_rate_place(strategy)},
the one place that all examples read it from.{_optimizer_note(strategy)}

Each example begins with the environment that the figures belong to: the allocator's settings,
threads and the like. It has to be set before torch is imported; what you have set already stays.

## Plain DeepSpeed

Save as `train.py`, then `sh launch.sh`:

```python
{deepspeed_example(workload, strategy, settings)}```

{_other_trainers(workload, hardware, strategy, settings)}"""


def _rate_place(strategy: Strategy) -> str:
    """Where the learning rate stands: with whoever builds the optimizer."""
    if is_client_optimizer(strategy):
        return "`strategy.yaml`, as `learning_rate`"
    return "`ds_config.json`, as `lr` of the optimizer"


def _other_trainers(
    workload: Workload, hardware: Hardware, strategy: Strategy, settings: ExportSettings
) -> str:
    """How to train by what drives DeepSpeed's engine for the user."""
    if strategy.pipeline_parallel_size > 1:
        return """\
## HF Trainer, Accelerate

Neither drives DeepSpeed's pipeline engine: train by the code above.
"""
    if strategy.model_parallel_size > 1:
        return """\
## HF Trainer, Accelerate

Where ranks share their samples, both divide batches and losses by rules of their own: train by the
code above.
"""
    return f"""\
## HF Trainer

Save as `train.py`, then `sh launch.sh`. The arguments come before the model:

```python
{trainer_example(workload, hardware, strategy, settings)}```

## Accelerate

Save as `train.py`, then `sh launch.sh`:

```python
{accelerate_example(workload, strategy, settings)}```
"""


_FLAT_8BIT_NOTE = """

The optimizer's states are in 8 bit, those of the embedding too: DeepSpeed hands the optimizer flat
partitions, in which bitsandbytes cannot tell one parameter from another. With ZeRO-0 they would be
in 32 bit."""

_8BIT_NOTE = """

The optimizer's states are in 8 bit, those of the embedding in 32 bit."""

_MUON_NOTE = """

Muon trains the matrices between embedding and head, AdamW all else, both at the same learning
rate. `gradient_clipping` is 0: under ZeRO, DeepSpeed would clip Muon's update."""


def _optimizer_note(strategy: Strategy) -> str:
    """What a user of this optimizer should know, as paragraphs of their own."""
    return _algorithm_note(strategy) + (_SCALE_NOTE if strategy.scales_own_loss else "")


def _algorithm_note(strategy: Strategy) -> str:
    facts = OPTIMIZERS[strategy.optimizer]
    if facts.is_8bit:
        return _FLAT_8BIT_NOTE if flattens_parameters(strategy) else _8BIT_NOTE
    return _MUON_NOTE if strategy.optimizer is Optimizer.MUON else ""
