"""Rows of published measurements in CSV files, in the project's own terms.

Columns as `columns.md` beside the data explains them. Does not know what is predicted.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path

from autotune.machine.hardware import DEVICE_KINDS, DeviceType, Hardware
from autotune.question.workload import ModelShape

__all__ = ["NotUsableError", "hardware_of", "read_rows", "shape_of", "strategy_ranks"]

GIB = 2**30

_DEVICES = {
    "A100-80GB": "A100-80GB",
    "A800-80GB": "A100-80GB",
    "A100-SXM4-80GB": "A100-80GB",
    "A100": "A100-40GB",
    "H100": "H100-80GB",
    "H100-80GB": "H100-80GB",
    "V100-32GB": "V100-32GB",
    "V100-16GB": "V100-16GB",
    "RTX 3090 (280W, no NVLink)": "RTX3090",
    "RTX 4090 (PCIe4 x16)": "RTX4090",
    "RTX 4090": "RTX4090",
    "NVIDIA GeForce RTX 4080": "RTX4090",
    "40GB": "A100-40GB",
}
"""A100 alone, or 40 GB, does not say which, and a kind that `hardware.py` lacks stands under its
neighbour: of a device, peak memory depends on its size alone, which rows state themselves."""

_TIED = ("gpt", "powerlm", "llama-3.2", "qwen2.5-0.5b", "qwen2.5-1.5b", "qwen2.5-3b", "opt")


class NotUsableError(ValueError):
    """Why a row is left out, in words that several rows share."""


def read_rows(path: Path) -> list[dict[str, str]]:
    """All rows of a file."""
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def shape_of(row: Mapping[str, str]) -> ModelShape:
    """The model of a row.

    Raises:
        NotUsableError: a mixture of experts, or a dimension is not given.
    """
    name = row["model"].lower()
    missing = [key for key in ("hidden", "layers", "heads", "vocab") if not row[key]]
    if missing:
        raise NotUsableError("dimensions of the model are not given")
    hidden, heads = int(row["hidden"]), int(row["heads"])
    plain = "gpt" in name.split("/")[-1]
    model_type = "gpt2" if plain else "opt" if "opt-" in name else "llama"
    if "qwen2" in name:
        model_type = "qwen2"
    is_mixture = "mixtral" in name
    return ModelShape(
        name=row["model"],
        model_type="mixtral" if is_mixture else model_type,
        hidden_size=hidden,
        intermediate_size=int(row["ffn"] or 4 * hidden),
        num_hidden_layers=int(row["layers"]),
        num_attention_heads=heads,
        num_key_value_heads=int(row["kv_heads"] or heads),
        head_dim=hidden // heads,
        vocab_size=int(row["vocab"]),
        max_position_embeddings=int(row["seq_len"]),
        # DeepSpeed's example of a GPT has an output projection of its own.
        tie_word_embeddings=any(part in name for part in _TIED) and "custom" not in name,
        embedding_size=hidden,
        num_experts=8 if is_mixture else 1,
        config={"activation_function": "gelu"} if plain else {},
    )


def hardware_of(row: Mapping[str, str]) -> Hardware:
    """The devices of a row, taken to be of one host.

    Raises:
        NotUsableError: the device table does not have them.
    """
    kind = DEVICE_KINDS.get(_DEVICES.get(row["gpu"], ""))
    if kind is None:
        raise NotUsableError(f"unknown device ({row['gpu'] or 'not named'})")
    own_bytes = int(float(row["gpu_mem_gb"] or 0) * GIB)
    return Hardware(
        device_type=DeviceType.CUDA,
        device_kind=kind.name,
        num_devices=int(row["num_gpus"]),
        device_memory_bytes=own_bytes or kind.memory_bytes,
        host_memory_bytes=2**42,
        flops_per_s=kind.flops_per_s,
        memory_bytes_per_s=kind.memory_bytes_per_s,
        supports_bf16=kind.supports_bf16,
        supports_tf32=kind.supports_tf32,
    )


def strategy_ranks(row: Mapping[str, str]) -> tuple[int, int, int]:
    """Tensor, pipeline and data parallel degrees."""
    tensor, pipeline = int(row["tp"] or 1), int(row["pp"] or 1)
    return tensor, pipeline, int(row["num_gpus"]) // (tensor * pipeline)
