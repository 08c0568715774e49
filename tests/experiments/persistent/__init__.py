"""Tests of experiments/persistent."""
