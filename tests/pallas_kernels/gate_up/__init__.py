"""Tests of pallas_kernels.gate_up."""
