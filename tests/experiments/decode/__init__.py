"""Tests of experiments/decode."""
