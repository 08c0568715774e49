"""top_k_top_p: which tokens top-k and top-p keep."""
