"""What a model is: its config, the families that are known, the decoder."""
