"""Tests of pallas_kernels.attention."""
