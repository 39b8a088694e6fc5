"""The training code of an export's README: plain DeepSpeed, the HF Trainer, Accelerate.

Does not know what else the README says, nor how the folder is written.
"""

from __future__ import annotations

from collections.abc import Iterable

from autotune.answer.export_settings import ExportSettings
from autotune.knob_values import Batching, Precision
from autotune.machine.hardware import DeviceType, Hardware
from autotune.question.presets import PRESETS
from autotune.question.workload import Method, Workload
from autotune.space.deepspeed_config import is_client_optimizer
from autotune.space.strategy import Strategy

__all__ = ["accelerate_example", "deepspeed_example", "trainer_example"]

_DYNAMO = "import torch._dynamo  # torch 2.13: before DeepSpeed divides a model\n"

_DTYPES = {
    Precision.BF16: "torch.bfloat16",
    Precision.FP16: "torch.float16",
    Precision.FP32: "torch.float32",
}


_LOOP = """\
for batch in batches:  # your batches: token ids, [{size}, tokens]{where}
    batch = batch.to(engine.device)
    loss = engine(input_ids=batch, labels=batch, use_cache=False).loss
    engine.backward(loss)
    engine.step()
"""

_COLLATED_LOOP = """\
collate = autotune.collator("strategy.yaml", pad_token_id=0)  # the pad token of your tokenizer
{pack}for samples in batches:  # your batches: lists of {size} {what}{where}
    inputs = {{
        name: value.to({device}) if torch.is_tensor(value) else value
        for name, value in collate(samples).items()
    }}
"""

_COLLATED_STEP = """\
    loss = engine(**inputs, use_cache=False).loss
    engine.backward(loss)
    engine.step()
"""

_COLLATED_ACCELERATE_STEP = """\
    with accelerator.accumulate(model):
        loss = model(**inputs, use_cache=False).loss
        accelerator.backward(loss)
        optimizer.step()
        optimizer.zero_grad()
"""

_SEQUENCE_LOOP = """\
for batch in batches:  # your batches: token ids, [{size}, tokens]{where}
    batch = batch.to(engine.device)
    # The tokens of this rank. Pad on the right, with labels of -100.
    inputs = autotune.shard_batch({{"input_ids": batch, "labels": batch}}, "strategy.yaml")
    # The loss of the batch is the {merge} over the ranks.
    loss = engine(**inputs, use_cache=False).loss
    engine.backward(loss)
    engine.step()
"""

_PIPELINE_LOOP = """\
# Your batches: token ids, [{size}, tokens], the same on all ranks with the same
# engine.mpu.get_data_parallel_rank(). A micro-batch is ((token ids, labels), ()).
samples = (((batch, batch), ()) for batch in batches)
for _ in range(num_steps):
    loss = engine.train_batch(samples)
"""


_TRAINER = """

class StrategyTrainer(Trainer):
    def create_optimizer(self, model=None):  # with DeepSpeed, Trainer ignores `optimizers`
        self.optimizer = autotune.create_optimizer(self.model, "strategy.yaml")
        return self.optimizer


"""

_ACCELERATE_LOOP = """\
for batch in batches:  # your batches: token ids, [{size}, tokens] on each rank
    batch = batch.to(accelerator.device)
    with accelerator.accumulate(model):
        loss = model(input_ids=batch, labels=batch, use_cache=False).loss
        accelerator.backward(loss)
        optimizer.step()
        optimizer.zero_grad()
"""


def _beginning(settings: ExportSettings, imports: str) -> str:
    """The beginning of every example: environment, imports, and extensions to leave out."""
    after = _lines(settings.extension_lines())
    return f"""\
import os

{_lines(settings.python_lines())}
{imports}{after}"""


def _other_imports(settings: ExportSettings) -> str:
    """The imports of an example in which a library calls DeepSpeed."""
    deepspeed = "deepspeed, " if list(settings.extension_lines()) else ""
    return f"import json\n\nimport autotune, {deepspeed}torch\n"


def _model_imports(workload: Workload, *others: str) -> str:
    """The import from transformers of the classes that load the model."""
    quantization = ("BitsAndBytesConfig",) if workload.method is Method.QLORA else ()
    names = sorted((_model_class(workload), *quantization, *others))
    return f"from transformers import {', '.join(names)}\n"


def _model_class(workload: Workload) -> str:
    """The class of transformers that loads the model with all its parts."""
    has_tower = workload.model.tower_parameters > 0
    return "AutoModelForImageTextToText" if has_tower else "AutoModelForCausalLM"


def deepspeed_example(workload: Workload, strategy: Strategy, settings: ExportSettings) -> str:
    """A whole `train.py` but for the user's batches."""
    imports = f"import autotune, deepspeed, torch\n{_model_imports(workload)}"
    divide = ""
    if strategy.zero_stage == 3:
        imports += _DYNAMO + "from transformers.integrations import HfDeepSpeedConfig\n"
        # Parameters are divided as they are loaded only while this object lives.
        divide = """\
keep_alive = HfDeepSpeedConfig("ds_config.json")  # ZeRO-3: partitions the model while it loads
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
{_loop(workload, strategy)}"""


def _collated_loop(strategy: Strategy, device: str, step: str) -> str:
    """The loop over samples of different lengths."""
    is_packed = strategy.batching is Batching.PACKED
    degree = strategy.model_parallel_size
    loop = _COLLATED_LOOP.format(
        pack='# Sequences of all samples: autotune.pack(samples, "strategy.yaml")\n'
        if is_packed
        else "",
        size=strategy.micro_batch_size,
        what="sequences" if is_packed else 'samples, {"input_ids": [...]},',
        where=f", the same where rank // {degree} is" if degree > 1 else " on each rank",
        device=device,
    )
    return loop + step


def _loop(workload: Workload, strategy: Strategy) -> str:
    is_plain = strategy.pipeline_parallel_size == strategy.sequence_parallel_size == 1
    if workload.lengths is not None and is_plain:
        return _collated_loop(strategy, "engine.device", _COLLATED_STEP)
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
model = {_model_class(workload)}.from_pretrained(
    {model}
    dtype={dtype},
    attn_implementation="{strategy.attention}",{quantization}
)"""


def trainer_example(
    workload: Workload, hardware: Hardware, strategy: Strategy, settings: ExportSettings
) -> str:
    """A whole `train.py` for the HF Trainer, but for the user's data set."""
    is_client = is_client_optimizer(strategy)
    imports = _other_imports(settings) + _model_imports(workload, "Trainer", "TrainingArguments")
    imports += _DYNAMO if strategy.zero_stage == 3 else ""
    # The Trainer refuses a JSON that says otherwise than its own arguments, so they are read.
    rate = "" if is_client else '\n    learning_rate=config["optimizer"]["params"]["lr"],'
    cpu = "\n    use_cpu=True," if hardware.device_type is DeviceType.CPU else ""
    trainer = "StrategyTrainer" if is_client else "Trainer"
    # The Trainer drops what the model's forward does not name, such as the lengths of pieces.
    columns = "" if workload.lengths is None else "\n    remove_unused_columns=False,"
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
    fp16=config.get("fp16", {{}}).get("enabled", False),{rate}{cpu}{columns}
)
{_load_model(workload, strategy)}
model = autotune.apply(model, "strategy.yaml")
{_TRAINER if is_client else ""}\
{_trainer_line(workload, strategy, trainer)}
trainer.train()
"""


def _trainer_line(workload: Workload, strategy: Strategy, trainer: str) -> str:
    """Makes the Trainer, with the strategy's collator where samples differ in length."""
    if workload.lengths is None:
        return (
            f"trainer = {trainer}(model=model, args=arguments, train_dataset=dataset)"
            "  # dataset: your own"
        )
    pack = ""
    if strategy.batching is Batching.PACKED:
        pack = 'dataset = autotune.pack(dataset, "strategy.yaml")\n'
    return f"""\
# dataset: your own samples, {{"input_ids": [...]}}
{pack}trainer = {trainer}(
    model=model,
    args=arguments,
    train_dataset=dataset,
    data_collator=autotune.collator("strategy.yaml", pad_token_id=0),  # your tokenizer's
)"""


def accelerate_example(workload: Workload, strategy: Strategy, settings: ExportSettings) -> str:
    """A whole `train.py` for Accelerate, but for the user's batches."""
    is_client = is_client_optimizer(strategy)
    imports = _other_imports(settings) + "from accelerate import Accelerator, DeepSpeedPlugin\n"
    imports += "" if is_client else "from accelerate.utils import DummyOptim\n"
    imports += _model_imports(workload) + (_DYNAMO if strategy.zero_stage == 3 else "")
    optimizer = (
        "DummyOptim([p for p in model.parameters() if p.requires_grad])  # the JSON names it"
    )
    if is_client:
        optimizer = 'autotune.create_optimizer(model, "strategy.yaml")'
    loop = _ACCELERATE_LOOP.format(size=strategy.micro_batch_size)
    if workload.lengths is not None:
        step = _COLLATED_ACCELERATE_STEP
        loop = _collated_loop(strategy, "accelerator.device", step)
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
{loop}"""


def _lines(statements: Iterable[str]) -> str:
    return "".join(f"{statement}\n" for statement in statements)
