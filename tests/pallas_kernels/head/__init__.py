"""Tests of pallas_kernels.head."""
