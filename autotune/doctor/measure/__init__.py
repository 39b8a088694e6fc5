"""Measures the rates of this machine, in processes of its own: what `doctor --measure` runs."""

from autotune.doctor.measure.session import measure_rates

__all__ = ["measure_rates"]
