"""Time of an optimizer step: products, traffic, communication, launches, the update."""
