"""Tests of experiments/layer."""
