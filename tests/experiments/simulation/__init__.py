"""Tests of experiments/simulation."""
