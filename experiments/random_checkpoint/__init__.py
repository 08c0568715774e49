"""A checkpoint folder of a known model with random weights and a tokenizer of its size, for servers to load."""
