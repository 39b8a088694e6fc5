"""The texts of an exported folder: its README and its launch script.

Does not know how the folder is written. `export_examples.py` has the training code.
"""

from __future__ import annotations

import re
from html import escape
from textwrap import fill

from autotune.answer.export_examples import (
    accelerate_example,
    deepspeed_example,
    trainer_example,
)
from autotune.answer.export_settings import ExportSettings, settings_of
from autotune.knob_values import LossClass, Optimizer
from autotune.machine.hardware import DeviceType, Hardware
from autotune.names import visible
from autotune.question.command import TrainingCommand
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

Without ZeRO, DeepSpeed does not scale the loss for fp16. The optimizer does it instead, and clips
gradients to a norm of {GRADIENT_CLIPPING:g} (`optimizer.loss_scale.max_norm`). `gradient_clipping`
is 0 in the JSON, because it would clip scaled gradients."""


def launch_line(hardware: Hardware, num_nodes: int = 1) -> str:
    """The command that starts `train.py` on every rank.

    Args:
        hardware: one host.
        num_nodes: number of such hosts; DeepSpeed reads their names from a hostfile.
    """
    if hardware.device_type is DeviceType.CPU:
        launcher = f"deepspeed --num_accelerators {hardware.num_devices}"
    else:
        launcher = f"deepspeed --num_gpus {hardware.num_devices}"
    if num_nodes > 1:
        launcher += f" --num_nodes {num_nodes} --hostfile hostfile"
    return f"{launcher} train.py --deepspeed ds_config.json"


def launch_script(hardware: Hardware, settings: ExportSettings, num_nodes: int = 1) -> str:
    """`launch.sh`: the environment and the launch command, which gets all further arguments."""
    where, hosts = visible(str(hardware)), ""
    lines = "".join(f"{line}\n" for line in settings.shell_lines())
    if num_nodes > 1:
        where = f"{num_nodes} nodes of {where}"
        hosts = (
            f"# Write a hostfile with one line per host: worker-1 slots={hardware.num_devices}\n"
        )
    return (
        "#!/bin/sh\n"
        f"# Trains on {where}. Write train.py first: README.md has an example.\n"
        f"{hosts}"
        "# The environment of the figures. Variables that are already set keep their value.\n"
        f"{lines}"
        f'{launch_line(hardware, num_nodes)} "$@"\n'
    )


def guide(summary: StudySummary, trial: Trial) -> str:
    """`README.md` of the folder."""
    assert trial.throughput is not None
    workload, speed = summary.workload, f"{trial.tokens_per_second:,.0f}"
    if trial.throughput.relative_half_width < 1:
        speed += f" ± {trial.throughput.half_width:,.0f}"
    padded = trial.measurement.padded_tokens_per_second if trial.measurement else None
    beside = "" if padded is None else f" ({padded:,.0f} with padding in its first run)"
    runs = f" over {len(trial.confirmations)} runs" if trial.is_confirmed else ""
    gib = trial.peak_memory_bytes / 2**30
    source = f" (by {_text(trial.reused_from)})" if trial.reused_from else ""
    has_prediction = trial.prediction is not None and trial.prediction.is_memory_known
    predicted = _predicted(trial.prediction) if trial.prediction and has_prediction else ""
    origin = f"""\
Trial {trial.number} of the autotune study {_text(summary.name)}: {workload.model.name},
{"" if workload.lengths is None else "at most "}{workload.seq_len} tokens per sample, \
{workload.global_batch_size} samples per step, on \
{summary.hardware}.
Measured: {speed} {trial.unit}/s{beside}{runs} and a peak of {gib:.2f} GiB per device{source}.
{predicted}\
The strategy {loss_words(summary.loss_class(trial), summary.reference)}."""
    settings = settings_of(trial, summary.hardware)
    own = own_training_section(summary.own_training.command) if summary.own_training else ""
    return guide_text(origin, workload, summary.hardware, trial.strategy, settings, own=own)


def own_training_section(command: TrainingCommand) -> str:
    """How the user's own command trains with the answer, without a changed line."""
    words = visible(str(command))
    # A code block is shown as it is: it ends at as many backticks as it began with.
    runs = re.findall("`+", words)
    fence = "`" * max(3, 1 + max(map(len, runs), default=0))
    return f"""\
## Your own command

Run this where you ran the search, with this folder in the place of `EXPORT`:

```sh
autotune run EXPORT
```

It trains to the end in the folder `{_text(command.folder)}`, with your own checkpoints, evaluation
and logging, and with what your launcher set:

{fence}sh
{words}
{fence}

The strategy is put in where the program calls DeepSpeed, in the same way as in the trials. What
stands behind `=` in braces is only for the first run of a search. Another command, with its
launcher, may stand behind `autotune run EXPORT --`.

The sections below are for those who would rather write these lines into the program.

"""


def _text(name: str) -> str:
    """The name of a folder, escaped for Markdown, which may contain HTML."""
    return escape(visible(name), quote=False)


def _predicted(prediction: Prediction) -> str:
    """The prediction before the launch, as a line of its own."""
    lower, peak, upper = (
        size / 2**30
        for size in (
            prediction.peak_memory_lower_bytes,
            prediction.peak_memory_bytes,
            prediction.peak_memory_upper_bytes,
        )
    )
    return (
        f"Predicted: {prediction.tokens_per_second:,.0f} tokens/s and {peak:.2f} GiB (bounds "
        f"{lower:.2f}-{upper:.2f} GiB).\n"
    )


def loss_words(loss_class: LossClass, reference: Strategy) -> str:
    """What a loss class means, as the end of a sentence that begins with "The strategy"."""
    if loss_class is LossClass.NEUTRAL:
        return "gives the same training result as the reference"
    return f"may alter the training result, compared with the reference: {reference}"


def guide_text(
    origin: str,
    workload: Workload,
    hardware: Hardware,
    strategy: Strategy,
    settings: ExportSettings,
    *,
    is_measured: bool = True,
    own: str = "",
) -> str:
    """`README.md` of a folder to train with.

    Args:
        origin: where the strategy comes from, and what its figures are.
        workload: what it trains.
        hardware: all ranks.
        strategy: how.
        settings: the environment of the figures.
        is_measured: whether the figures were measured, not only predicted.
        own: a section on the user's own command, first of all.
    """
    as_run = " of the trial" if is_measured else "; no trial has run with it"
    as_had = " of the trial" if is_measured else ""
    figures = "measurements and predictions" if is_measured else "predictions"
    remarks = "".join(f"\n\n{fill(words, 99)}" for words in workload.remarks)
    return f"""\
# {strategy}

{origin}{remarks}

| file | what it is |
|---|---|
| `ds_config.json` | the DeepSpeed configuration{as_run} |
| `strategy.yaml` | the other knobs: checkpointing, LoRA, kernels, some optimizers |
| `launch.sh` | the environment{as_had}, and the launch command |
| `provenance.json` | {"study, versions, hardware" if is_measured else "hardware"}, {figures} |

{own}\
The learning rate, {LEARNING_RATE:g}, is a placeholder. Set yours in {_rate_location(strategy)}.
All examples read it from there.{_optimizer_note(strategy)}

Each example begins with the environment of the figures, such as the settings of the allocator and
the number of threads. It must be set before torch is imported. Variables that are already set keep
their value.

## Plain DeepSpeed

Save as `train.py`, then `sh launch.sh`:

```python
{deepspeed_example(workload, strategy, settings)}```

{_other_trainers(workload, hardware, strategy, settings)}"""


def _rate_location(strategy: Strategy) -> str:
    """The file and key of the learning rate: it belongs to whoever builds the optimizer."""
    if is_client_optimizer(strategy):
        return "`strategy.yaml`, as `learning_rate`"
    return "`ds_config.json`, as `lr` of the optimizer"


def _other_trainers(
    workload: Workload, hardware: Hardware, strategy: Strategy, settings: ExportSettings
) -> str:
    """The sections on HF Trainer and Accelerate, which call the DeepSpeed engine for the user."""
    if strategy.pipeline_parallel_size > 1:
        return """\
## HF Trainer, Accelerate

Neither supports the pipeline engine of DeepSpeed. Train with the code above.
"""
    if strategy.model_parallel_size > 1:
        return """\
## HF Trainer, Accelerate

Both divide batches and losses in their own way if several ranks work on the same samples. Train
with the code above.
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

All optimizer states are in 8 bit, also those of the embedding. DeepSpeed gives the optimizer flat
partitions, in which bitsandbytes cannot find the embedding. Only with ZeRO-0 are the states of the
embedding in 32 bit."""

_8BIT_NOTE = """

Optimizer states are in 8 bit, except those of the embedding, which are in 32 bit."""

_MUON_NOTE = """

Muon trains the matrices between embedding and head. AdamW trains all other parameters at the same
learning rate. `gradient_clipping` is 0, because under ZeRO DeepSpeed would clip the update of
Muon."""


def _optimizer_note(strategy: Strategy) -> str:
    """What a user should know about this optimizer, as separate paragraphs."""
    return _algorithm_note(strategy) + (_SCALE_NOTE if strategy.scales_own_loss else "")


def _algorithm_note(strategy: Strategy) -> str:
    facts = OPTIMIZERS[strategy.optimizer]
    if facts.is_8bit:
        return _FLAT_8BIT_NOTE if flattens_parameters(strategy) else _8BIT_NOTE
    return _MUON_NOTE if strategy.optimizer is Optimizer.MUON else ""
