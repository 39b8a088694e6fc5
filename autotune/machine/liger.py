"""The architectures that the installed Liger has fused kernels for, asked of Liger itself.

Its table is read from its source: importing it loads Triton, which not every machine has, and
which would take the GPU. Does not know whether a kernel runs here.
"""

from __future__ import annotations

import re
from functools import cache
from importlib.util import find_spec
from pathlib import Path

__all__ = ["liger_model_types"]

_FILE = Path("transformers") / "monkey_patch.py"
_TABLE = re.compile(r"^MODEL_TYPE_TO_APPLY_LIGER_FN\b[^{\n]*\{(.*?)^\}", re.DOTALL | re.MULTILINE)
"""The table of Liger 0.5 to 0.8: the architecture's `model_type`, and the function for it."""

_ENTRY = re.compile(r"^\s*[\"']([\w.-]+)[\"']\s*:", re.MULTILINE)


@cache
def liger_model_types() -> frozenset[str] | None:
    """Each `model_type` that Liger patches; None where it is not installed, or has no such table.

    Those of language models are among those of vision-language models and their parts.
    """
    spec = find_spec("liger_kernel")
    for folder in (spec.submodule_search_locations if spec else None) or ():
        try:
            text = (Path(folder) / _FILE).read_text(encoding="utf-8")
        except (OSError, ValueError):
            continue
        table = _TABLE.search(text)
        if table:
            return frozenset(_ENTRY.findall(table[1])) or None
    return None
