"""Files of other tools: read as a question and a strategy, and written from a strategy."""
