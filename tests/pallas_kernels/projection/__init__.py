"""Tests of pallas_kernels.projection."""
