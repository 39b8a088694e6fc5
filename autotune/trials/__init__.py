"""Trials, their predictions and measurements, and the protocols between packages."""
