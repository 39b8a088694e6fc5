"""Time of an optimizer step: matrix products, memory traffic, communication, launches, update."""
