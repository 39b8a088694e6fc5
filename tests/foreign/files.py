"""Files of other tools for tests, in the shapes that their example folders have.

Written anew, with the keys and the habits of the examples of Accelerate 1.15 (`examples/`),
Axolotl (`examples/`, `deepspeed_configs/`) and LLaMA-Factory (`examples/`): keys without a value,
numbers with underscores, words of YAML 1.1, files that are named from another folder.
"""

from __future__ import annotations

import json
from pathlib import Path

__all__ = [
    "ACCELERATE_INLINE",
    "ACCELERATE_NAMING",
    "AXOLOTL_ALST",
    "AXOLOTL_FULL",
    "AXOLOTL_LIGER_FSDP",
    "AXOLOTL_LORA",
    "DEEPSPEED_AUTO",
    "DEEPSPEED_NUMBERS",
    "LLAMAFACTORY_FULL",
    "LLAMAFACTORY_LORA",
    "LLAMAFACTORY_QLORA",
    "write",
]

DEEPSPEED_AUTO = {
    "train_micro_batch_size_per_gpu": "auto",
    "gradient_accumulation_steps": "auto",
    "train_batch_size": "auto",
    "gradient_clipping": "auto",
    "fp16": {"enabled": "auto", "loss_scale": 0, "initial_scale_power": 16, "hysteresis": 2},
    "bf16": {"enabled": "auto"},
    "zero_optimization": {
        "stage": 3,
        "overlap_comm": True,
        "contiguous_gradients": True,
        "sub_group_size": 5e8,
        "reduce_bucket_size": "auto",
        "stage3_prefetch_bucket_size": "auto",
        "stage3_param_persistence_threshold": "auto",
        "stage3_max_live_parameters": 5e8,
        "offload_optimizer": {"device": "cpu", "pin_memory": True},
    },
    "optimizer": {"type": "AdamW", "params": {"lr": "auto", "betas": "auto"}},
    "monitor_config": {"enabled": True},
    "wall_clock_breakdown": False,
}

DEEPSPEED_NUMBERS = {
    "train_batch_size": 64,
    "train_micro_batch_size_per_gpu": 4,
    "bf16": {
        "enabled": True,
        "bf16_master_weights_and_grads": True,
        "bf16_optimizer_states": True,
    },
    "zero_optimization": {
        "stage": 2,
        "overlap_comm": True,
        "reduce_bucket_size": 2e8,
        "allgather_bucket_size": 2e8,
    },
    "tensor_parallel": {"autotp_size": 2},
    "optimizer": {"type": "Adam", "params": {"lr": 3e-4}},
}

ACCELERATE_INLINE = """\
compute_environment: LOCAL_MACHINE
debug: false
deepspeed_config:
  deepspeed_multinode_launcher: standard
  gradient_accumulation_steps: 4
  gradient_clipping: 1.0
  offload_optimizer_device: cpu
  offload_param_device: none
  zero3_init_flag: true
  zero_stage: 3
distributed_type: DEEPSPEED
downcast_bf16: 'no'
machine_rank: 0
main_training_function: main
mixed_precision: bf16
num_machines: 1
num_processes: 4
rdzv_backend: static
same_network: true
tpu_env: []
use_cpu: no
"""

ACCELERATE_NAMING = """\
distributed_type: DEEPSPEED
deepspeed_config:
  # Named from another folder.
  deepspeed_config_file: ../json/zero.json
  zero3_init_flag: false
num_processes: 2
"""

AXOLOTL_LORA = """\
base_model: NousResearch/Llama-2-7b-hf
# optional
model_type: LlamaForCausalLM

load_in_8bit: true
load_in_4bit: false

datasets:
  - path: somewhere/instructions
    type: alpaca
val_set_size: 0.05
output_dir: ./outputs/lora-out

sequence_len: 4096
sample_packing: true

adapter: lora
lora_model_dir:
lora_r: 32
lora_alpha: 16
lora_dropout: 0.05
lora_target_linear: true

wandb_project:

gradient_accumulation_steps: 4
micro_batch_size: 2
num_epochs: 4
optimizer: adamw_bnb_8bit
lr_scheduler: cosine
learning_rate: 0.0002

bf16: auto
tf32: false

gradient_checkpointing: true
flash_attention: true
special_tokens:
   pad_token: <|end_of_text|>
"""

AXOLOTL_FULL = """\
base_model: meta-llama/Llama-3.2-3B
sequence_len: 8192
pad_to_sequence_len: true
gradient_accumulation_steps: 8
micro_batch_size: 1
optimizer: paged_adamw_8bit
learning_rate: 2e-5
bf16: auto
fp16:
gradient_checkpointing: true
gradient_checkpointing_kwargs:
  use_reentrant: false
xformers_attention:
flash_attention: true
deepspeed:
fsdp:
fsdp_config:
"""

AXOLOTL_ALST = """\
base_model: meta-llama/Llama-3.2-3B
sequence_len: 100_000
tiled_mlp: true
sequence_parallel_degree: 8
plugins:
  - axolotl.integrations.cut_cross_entropy.CutCrossEntropyPlugin
gradient_accumulation_steps: 1
micro_batch_size: 1
optimizer: adamw_torch_fused
learning_rate: 2e-5
bf16: auto
tf32: true
gradient_checkpointing: true
activation_offloading: legacy
flash_attention: true
deepspeed: deepspeed_configs/zero3_bf16_cpuoffload_all.json
"""

AXOLOTL_LIGER_FSDP = """\
base_model: NousResearch/Llama-3.2-3B
plugins:
  - axolotl.integrations.liger.LigerPlugin
liger_rope: true
liger_rms_norm: true
liger_glu_activation: true
liger_fused_linear_cross_entropy: true
sequence_len: 4096
gradient_accumulation_steps: 4
micro_batch_size: 2
optimizer: adamw_torch_fused
learning_rate: 2e-5
bf16: true
gradient_checkpointing: true
torch_compile: true
attention: flash
fsdp:
  - full_shard
  - auto_wrap
fsdp_config:
  fsdp_offload_params: true
  fsdp_sharding_strategy: FULL_SHARD
special_tokens:
  pad_token: <|finetune_right_pad_id|>
special_tokens:
  pad_token: <|end_of_text|>
"""

LLAMAFACTORY_LORA = """\
### model
model_name_or_path: meta-llama/Llama-2-7b-chat-hf
trust_remote_code: true

### method
stage: sft
do_train: true
finetuning_type: lora
lora_target: all
deepspeed: examples/deepspeed/ds_z3_config.json  # choices: [ds_z0_config.json, ds_z2_config.json]

### dataset
dataset: identity,alpaca_en_demo
template: llama2
cutoff_len: 2048

### train
per_device_train_batch_size: 1
gradient_accumulation_steps: 2
learning_rate: 1.0e-4
bf16: true
"""

LLAMAFACTORY_QLORA = """\
model_name_or_path: meta-llama/Llama-2-7b-hf
quantization_bit: 4
stage: sft
do_train: true
finetuning_type: lora
lora_target: q_proj,v_proj
lora_rank: 16
lora_alpha: 8
cutoff_len: 1024
per_device_train_batch_size: 1
gradient_accumulation_steps: 8
learning_rate: 1.0e-4
fp16: true
"""

LLAMAFACTORY_FULL = """\
model_name_or_path: meta-llama/Llama-3.2-3B
flash_attn: fa2
enable_liger_kernel: true
disable_gradient_checkpointing: true
stage: sft
do_train: true
finetuning_type: full
deepspeed: json/zero.json
per_device_train_batch_size: 2
gradient_accumulation_steps: 4
optim: adamw_torch
use_muon: false
learning_rate: 2.0e-5
bf16: true
max_samples: null
"""


def write(folder: Path, name: str, content: str | dict[str, object]) -> Path:
    """Write a file, and the folders that lead to it."""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path
