"""Tests of pallas_kernels.common."""
