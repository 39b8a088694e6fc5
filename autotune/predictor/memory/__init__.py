"""Memory of one rank by formula: its parts, and the greatest moment of a step."""
