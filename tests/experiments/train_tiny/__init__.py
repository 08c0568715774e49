"""Tests of experiments/train_tiny."""
