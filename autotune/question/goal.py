"""What a search is after."""

from enum import StrEnum

__all__ = ["Goal"]


class Goal(StrEnum):
    """What trials are chosen for, by the name that --objective takes."""

    BALANCED = "balanced"
    """The whole front: the hypervolume under it, up to the memory limit."""
    THROUGHPUT = "throughput"
    """The fastest that fits."""
    MEMORY = "memory"
    """The least memory."""
    ENERGY = "energy"
    """The least energy a token."""
