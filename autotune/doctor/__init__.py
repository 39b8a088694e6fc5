"""What this machine can do, and what is missing, each with what to type.

Looks without compiling, without a CUDA context and, unless asked, without importing torch.
"""

from autotune.doctor.check import Check, CheckStatus
from autotune.doctor.diagnosis import examine, exit_status, render, render_rates, to_json
from autotune.doctor.rates import RATE_LINES, examine_rates

__all__ = [
    "RATE_LINES",
    "Check",
    "CheckStatus",
    "examine",
    "examine_rates",
    "exit_status",
    "render",
    "render_rates",
    "to_json",
]
