"""RMSNorm, gate and up projections, activation and product in one launch."""
