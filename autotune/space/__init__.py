"""The search space: strategies, their knobs, and which of them a question allows."""
