"""Tests of experiments/throughput."""
