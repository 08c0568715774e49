"""Tests of experiments/prefill."""
