"""Traces one variant of a model: reads the question from stdin, writes the profile to a file.

    python -m autotune.profile OUT.json < QUESTION.json

For `process.py`, which starts it.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch  # noqa: F401  (before Triton's stand-in, which torch would take for the real one)

from autotune.knobs import Attention
from autotune.profile.liger import stand_in_for_triton
from autotune.profile.trace import trace
from autotune.profile.variant import Variant
from autotune.workload import ModelShape


def main(out: Path) -> None:
    """Trace what stdin asks for."""
    question = json.load(sys.stdin)
    told = question["variant"]
    told["attention"] = Attention(told["attention"])
    told["lora_targets"] = tuple(told["lora_targets"])
    variant = Variant(**told)
    if variant.fused_kernels:
        stand_in_for_triton()
    profile = trace(ModelShape(**question["shape"]), variant, question["seq_len"])
    out.write_text(json.dumps(profile.to_dict()), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
