"""Tests of pallas_kernels.selection."""
