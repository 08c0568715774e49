"""The small model that ships: its text, its tokenizer, its training."""
