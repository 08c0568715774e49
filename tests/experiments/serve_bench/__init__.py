"""Tests of experiments/serve_bench."""
