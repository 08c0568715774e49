"""Tests of experiments/sweep."""
