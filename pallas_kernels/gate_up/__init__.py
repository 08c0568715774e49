"""RMSNorm, gate and up projections, activation and product in one launch (two with tensor cores: common/norm.py)."""
