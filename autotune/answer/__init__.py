"""The answer of a search: live progress, the report, and a folder to train with."""
