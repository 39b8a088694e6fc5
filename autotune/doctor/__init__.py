"""What this machine can do, and what is missing, each with what to type.

Looks without compiling, without a CUDA context and, unless asked, without importing torch.
"""

from autotune.doctor.check import Check, CheckStatus
from autotune.doctor.diagnosis import examine, exit_status, render, to_json

__all__ = ["Check", "CheckStatus", "examine", "exit_status", "render", "to_json"]
