"""Tests of experiments/bench."""
