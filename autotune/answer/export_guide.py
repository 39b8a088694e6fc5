"""The texts of an exported folder: its README, with code to train by, and its launch script.

Does not know how the folder is written.
"""

from __future__ import annotations

from collections.abc import Iterable

from autotune.answer.export_settings import ExportSettings, settings_of
from autotune.knobs import LossClass, Optimizer, Precision
from autotune.machine.hardware import DeviceType, Hardware
from autotune.question.presets import PRESETS
from autotune.question.workload import Method, Workload
from autotune.space.deepspeed_config import (
    GRADIENT_CLIPPING,
    LEARNING_RATE,
    flattens_parameters,
    is_client_optimizer,
)
from autotune.space.strategy import Strategy
from autotune.study.summary import StudySummary
from autotune.trials.trial import Prediction, Trial

__all__ = ["guide", "guide_text", "launch_line", "launch_script", "loss_words"]

_DYNAMO = "import torch._dynamo  # torch 2.13: before DeepSpeed divides a model\n"

_DTYPES = {
    Precision.BF16: "torch.bfloat16",
    Precision.FP16: "torch.float16",
    Precision.FP32: "torch.float32",
}


_LOOP = """\
for batch in batches:  # yours: token ids, [{size}, tokens]{where}
    batch = batch.to(engine.device)
    loss = engine(input_ids=batch, labels=batch, use_cache=False).loss
    engine.backward(loss)
    engine.step()
"""

_SEQUENCE_LOOP = """\
for batch in batches:  # yours: token ids, [{size}, tokens]{where}
    batch = batch.to(engine.device)
    # This rank's tokens. Padding belongs on the right, and its labels are -100.
    inputs = autotune.shard_batch({{"input_ids": batch, "labels": batch}}, "strategy.yaml")
    loss = engine(**inputs, use_cache=False).loss  # the batch's is their {merge} over its ranks
    engine.backward(loss)
    engine.step()
"""

_PIPELINE_LOOP = """\
# Yours: token ids, [{size}, tokens], the same on all ranks of one
# engine.mpu.get_data_parallel_rank(); a micro-batch is ((token ids, labels), ()).
samples = (((batch, batch), ()) for batch in batches)
for _ in range(num_steps):
    loss = engine.train_batch(samples)
"""


_TRAINER = """

class StrategyTrainer(Trainer):
    def create_optimizer(self, model=None):  # under DeepSpeed a Trainer drops its `optimizers`
        self.optimizer = autotune.create_optimizer(self.model, "strategy.yaml")
        return self.optimizer


"""

_ACCELERATE_LOOP = """\
for batch in batches:  # yours: token ids, [{size}, tokens] on each rank
    batch = batch.to(accelerator.device)
    with accelerator.accumulate(model):
        loss = model(input_ids=batch, labels=batch, use_cache=False).loss
        accelerator.backward(loss)
        optimizer.step()
        optimizer.zero_grad()
"""

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
    where, hosts = str(hardware), ""
    if num_nodes > 1:
        where = f"{num_nodes} nodes of {hardware}"
        hosts = f"# hostfile is yours too: a line a host, worker-1 slots={hardware.num_devices}\n"
    return (
        "#!/bin/sh\n"
        f"# Trains on {where}. train.py is yours: README.md has one to start from.\n"
        f"{hosts}"
        "# The environment that the figures belong to. What is set in yours already stays.\n"
        f"{_lines(settings.shell_lines())}"
        f'{launch_line(hardware, num_nodes)} "$@"\n'
    )


def _lines(statements: Iterable[str]) -> str:
    return "".join(f"{statement}\n" for statement in statements)


def guide(summary: StudySummary, trial: Trial) -> str:
    """`README.md` of the folder."""
    assert trial.throughput is not None
    workload, speed = summary.workload, f"{trial.tokens_per_second:,.0f}"
    if trial.throughput.relative_half_width < 1:
        speed += f" ± {trial.throughput.half_width:,.0f}"
    runs = f" over {len(trial.confirmations)} runs" if trial.is_confirmed else ""
    gib = trial.peak_memory_bytes / 2**30
    source = f", by {trial.reused_from}" if trial.reused_from else ""
    predicted = _predicted(trial.prediction) if trial.prediction else ""
    origin = f"""\
Trial {trial.number} of the autotune study {summary.name}: {workload.model.name},
{workload.seq_len} tokens a sample, {workload.global_batch_size} samples a step, on \
{summary.hardware}.
Measured {speed} tokens/s{runs} and a peak of {gib:.2f} GiB on one device{source}.
{predicted}\
The strategy {loss_words(summary.loss_class(trial), summary.reference)}."""
    settings = settings_of(trial, summary.hardware)
    return guide_text(origin, workload, summary.hardware, trial.strategy, settings)


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
{_deepspeed_example(workload, strategy, settings)}```

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
{_trainer_example(workload, hardware, strategy, settings)}```

## Accelerate

Save as `train.py`, then `sh launch.sh`:

```python
{_accelerate_example(workload, strategy, settings)}```
"""


def _optimizer_note(strategy: Strategy) -> str:
    """What a user of this optimizer should know, as paragraphs of their own."""
    return _algorithm_note(strategy) + (_SCALE_NOTE if strategy.scales_own_loss else "")


def _algorithm_note(strategy: Strategy) -> str:
    match strategy.optimizer:
        case Optimizer.ADAMW_8BIT | Optimizer.PAGED_ADAMW_8BIT | Optimizer.LION_8BIT:
            if flattens_parameters(strategy):
                return """

The optimizer's states are in 8 bit, those of the embedding too: DeepSpeed hands the optimizer flat
partitions, in which bitsandbytes cannot tell one parameter from another. With ZeRO-0 they would be
in 32 bit."""
            return """

The optimizer's states are in 8 bit, those of the embedding in 32 bit."""
        case Optimizer.MUON:
            return """

Muon trains the matrices between embedding and head, AdamW all else, both at the same learning
rate. `gradient_clipping` is 0: under ZeRO, DeepSpeed would clip Muon's update."""
    return ""


def _beginning(settings: ExportSettings, imports: str) -> str:
    """Of every example: the environment, imports, and what DeepSpeed would compile in vain."""
    after = _lines(settings.extension_lines())
    return f"""\
import os

{_lines(settings.python_lines())}
{imports}{after}"""


def _other_imports(settings: ExportSettings) -> str:
    """Of an example that leaves DeepSpeed to a library."""
    deepspeed = "deepspeed, " if list(settings.extension_lines()) else ""
    return f"import json\n\nimport autotune, {deepspeed}torch\n"


def _model_imports(workload: Workload, *others: str) -> str:
    """The import from transformers of what loads the model."""
    quantization = ("BitsAndBytesConfig",) if workload.method is Method.QLORA else ()
    names = sorted(("AutoModelForCausalLM", *quantization, *others))
    return f"from transformers import {', '.join(names)}\n"


def _deepspeed_example(workload: Workload, strategy: Strategy, settings: ExportSettings) -> str:
    imports = f"import autotune, deepspeed, torch\n{_model_imports(workload)}"
    divide = ""
    if strategy.zero_stage == 3:
        imports += _DYNAMO + "from transformers.integrations import HfDeepSpeedConfig\n"
        # Parameters are divided as they are loaded only while this object lives.
        divide = """\
keep_alive = HfDeepSpeedConfig("ds_config.json")  # ZeRO-3 divides the model as it is loaded
"""
    put_on = "pipeline" if strategy.pipeline_parallel_size > 1 else "apply"
    units = ""
    if strategy.sequence_parallel_size > 1:
        imports += "from deepspeed.runtime.sequence_parallel import parallel_state_sp\n"
        units = "\n    mpu=parallel_state_sp,"
    return f"""\
{_beginning(settings, imports)}
{divide}deepspeed.init_distributed()
{_load_model(workload, strategy)}
model = autotune.{put_on}(model, "strategy.yaml")
optimizer = autotune.create_optimizer(model, "strategy.yaml")  # None: DeepSpeed builds it
engine, *_ = deepspeed.initialize(
    model=model,
    model_parameters=[p for p in model.parameters() if p.requires_grad],
    optimizer=optimizer,
    config="ds_config.json",{units}
)
{_loop(strategy)}"""


def _loop(strategy: Strategy) -> str:
    loop = _LOOP
    if strategy.pipeline_parallel_size > 1:
        loop = _PIPELINE_LOOP
    elif strategy.sequence_parallel_size > 1:
        loop = _SEQUENCE_LOOP
    degree = strategy.model_parallel_size
    return loop.format(
        size=strategy.micro_batch_size,
        where=f", the same where rank // {degree} is" if degree > 1 else " on each rank",
        merge="mean" if strategy.zero_stage == 3 else "sum",
    )


def _load_model(workload: Workload, strategy: Strategy) -> str:
    name = workload.model.name
    preset = PRESETS.get(name)
    model = f"{name!r}," if preset is None else f"MODEL,  # id or folder of {preset.architecture}"
    dtype = _DTYPES[strategy.precision]
    quantization = ""
    if workload.method is Method.QLORA:
        quantization = f"""
    quantization_config=BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype={dtype},
    ),
    device_map={{"": int(os.environ["LOCAL_RANK"])}},"""
    return f"""\
model = AutoModelForCausalLM.from_pretrained(
    {model}
    dtype={dtype},
    attn_implementation="{strategy.attention}",{quantization}
)"""


def _trainer_example(
    workload: Workload, hardware: Hardware, strategy: Strategy, settings: ExportSettings
) -> str:
    is_client = is_client_optimizer(strategy)
    imports = _other_imports(settings) + _model_imports(workload, "Trainer", "TrainingArguments")
    imports += _DYNAMO if strategy.zero_stage == 3 else ""
    # The Trainer refuses a JSON that says otherwise than its own arguments, so they are read.
    rate = "" if is_client else '\n    learning_rate=config["optimizer"]["params"]["lr"],'
    cpu = "\n    use_cpu=True," if hardware.device_type is DeviceType.CPU else ""
    trainer = "StrategyTrainer" if is_client else "Trainer"
    return f"""\
{_beginning(settings, imports)}
with open("ds_config.json") as file:
    config = json.load(file)
arguments = TrainingArguments(
    output_dir="output",
    deepspeed="ds_config.json",
    per_device_train_batch_size=config["train_micro_batch_size_per_gpu"],
    gradient_accumulation_steps=config["gradient_accumulation_steps"],
    max_grad_norm=config["gradient_clipping"],
    bf16=config.get("bf16", {{}}).get("enabled", False),
    fp16=config.get("fp16", {{}}).get("enabled", False),{rate}{cpu}
)
{_load_model(workload, strategy)}
model = autotune.apply(model, "strategy.yaml")
{_TRAINER if is_client else ""}\
trainer = {trainer}(model=model, args=arguments, train_dataset=dataset)  # dataset: yours
trainer.train()
"""


def _accelerate_example(workload: Workload, strategy: Strategy, settings: ExportSettings) -> str:
    is_client = is_client_optimizer(strategy)
    imports = _other_imports(settings) + "from accelerate import Accelerator, DeepSpeedPlugin\n"
    imports += "" if is_client else "from accelerate.utils import DummyOptim\n"
    imports += _model_imports(workload) + (_DYNAMO if strategy.zero_stage == 3 else "")
    optimizer = (
        "DummyOptim([p for p in model.parameters() if p.requires_grad])  # the JSON names it"
    )
    if is_client:
        optimizer = 'autotune.create_optimizer(model, "strategy.yaml")'
    return f"""\
{_beginning(settings, imports)}
with open("ds_config.json") as file:
    config = json.load(file)
accelerator = Accelerator(
    deepspeed_plugin=DeepSpeedPlugin(hf_ds_config="ds_config.json"),
    gradient_accumulation_steps=config["gradient_accumulation_steps"],
)
{_load_model(workload, strategy)}
model = autotune.apply(model, "strategy.yaml")
optimizer = {optimizer}
model, optimizer = accelerator.prepare(model, optimizer)
{_ACCELERATE_LOOP.format(size=strategy.micro_batch_size)}"""
