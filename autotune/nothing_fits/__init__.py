"""The answer where nothing fits: what is short, and the cheapest changes that help."""
