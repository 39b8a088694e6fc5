"""Reserved memory of one rank: PyTorch's allocator over what DeepSpeed allocates, in order."""
