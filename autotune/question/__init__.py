"""What a study is about: the model, how it is trained, what is after."""
