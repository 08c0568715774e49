"""Tests of experiments/server_soak."""
