"""RMSNorm, QKV projection, RoPE and the KV-cache write in one launch (two with tensor cores: common/norm.py)."""
