"""One trial: its processes, from the fork to the last of them gone."""
