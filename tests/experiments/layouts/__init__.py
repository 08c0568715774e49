"""Tests of experiments/layouts."""
