"""Keys that Axolotl and LLaMA-Factory publish, as far as an export writes them."""

from __future__ import annotations

__all__ = ["AXOLOTL", "LLAMAFACTORY"]

AXOLOTL = frozenset(
    (
        # src/axolotl/utils/schemas/model.py and peft.py
        *("base_model", "adapter", "load_in_4bit", "lora_r", "lora_alpha"),
        *("lora_target_linear", "lora_target_modules"),
        # training.py
        *("micro_batch_size", "gradient_accumulation_steps", "optimizer"),
        *("learning_rate", "max_grad_norm"),
        # config.py
        *("sequence_len", "bf16", "fp16", "tf32", "torch_compile", "deepspeed", "plugins"),
        *("gradient_checkpointing", "activation_offloading"),
        *("flash_attention", "sdp_attention", "eager_attention"),
        *("context_parallel_size", "tensor_parallel_size", "tiled_mlp", "tiled_mlp_num_shards"),
        # src/axolotl/integrations/liger/args.py
        *("liger_rope", "liger_rms_norm", "liger_glu_activation"),
        "liger_fused_linear_cross_entropy",
    )
)

LLAMAFACTORY = frozenset(
    (
        # src/llamafactory/hparams/model_args.py
        *("model_name_or_path", "flash_attn", "enable_liger_kernel", "quantization_bit"),
        "disable_gradient_checkpointing",
        # finetuning_args.py and data_args.py
        *("stage", "finetuning_type", "lora_rank", "lora_alpha", "lora_target", "use_muon"),
        "cutoff_len",
        # TrainingArguments of transformers
        *("do_train", "per_device_train_batch_size", "gradient_accumulation_steps", "optim"),
        *("learning_rate", "max_grad_norm", "bf16", "fp16", "tf32", "torch_compile", "deepspeed"),
    )
)
