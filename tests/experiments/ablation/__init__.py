"""Tests of experiments/ablation."""
