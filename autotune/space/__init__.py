"""What may be tried: strategies, their knobs, and which of them a question allows."""
