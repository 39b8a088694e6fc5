"""What the short words of a strategy mean, for `--help`.

Does not know the values of a strategy.
"""

from __future__ import annotations

__all__ = ["STRATEGY_LEGEND"]

STRATEGY_LEGEND = """\
Words of a strategy, such as Z2 mb8 ckpt2 liger:
  Z0 Z1 Z2 Z3        ZeRO stage
  mb8                micro-batch size: 8 samples per rank
  tp2 pp2 sp2        tensor, pipeline, sequence parallel size
  ckpt2              activation checkpointing of every 2 layers
  ckpt-attention     recompute the attention only (ckpt-mlp: the MLP)
  ckpt@cpu           checkpoints are offloaded to host memory
  optim@cpu          optimizer states are offloaded to the host
                     (@nvme: to disk; optim50%@cpu: half of them)
  param@cpu          parameters are offloaded
  mlp-tiles4         MLP in 4 tiles (loss-tiles8: logits and loss in 8)
  liger compile      Liger kernels, torch.compile
  eager              attention, or flash_attention_2; default: sdpa
  adamw_8bit         optimizer; default: adamw
  fp16 fp32          precision; default: bf16
  mlp=fp8            precision of one group of modules: embedding,
                     attention, mlp, norm, head
  master=bf16 tf32   precision of the master weights, of fp32 matrix products
  bucket50M          reduce_bucket_size: 50 million elements
  no-overlap         overlap_comm is off
  q-weights          ZeRO++ quantized weights (q-gradients: gradients)
  hpz2               ZeRO++ secondary partition size
  lora16 alpha32     LoRA rank and alpha
  on:mlp             layers that have adapters
A knob at its default has no word."""
