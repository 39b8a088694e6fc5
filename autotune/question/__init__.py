"""The question of a study: the model, how it is trained, and what is sought."""
