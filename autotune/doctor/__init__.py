"""The examination of this machine: what it can do, what is missing, and what to type about it.

Looks without a CUDA context and, unless asked, without compiling or importing torch.
"""

from autotune.doctor.check import Check, CheckStatus
from autotune.doctor.diagnosis import examine, exit_status, render, render_rates, to_json
from autotune.doctor.extensions import compile_extensions
from autotune.doctor.rates import RATE_LINES, examine_rates

__all__ = [
    "RATE_LINES",
    "Check",
    "CheckStatus",
    "compile_extensions",
    "examine",
    "examine_rates",
    "exit_status",
    "render",
    "render_rates",
    "to_json",
]
