"""Tests of pallas_kernels.rope_and_cache."""
