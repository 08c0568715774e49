"""Tests of pallas_kernels.qkv."""
