"""What follows the QKV product in a model: QK-norm, RoPE and the write into the KV cache, one launch."""
