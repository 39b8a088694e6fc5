"""The answer for hardware that is not here, from predictions alone."""
