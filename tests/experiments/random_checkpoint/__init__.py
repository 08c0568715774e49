"""Tests of experiments/random_checkpoint."""
