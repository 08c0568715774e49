"""Tests of pallas_kernels: they alone may look inside it."""
