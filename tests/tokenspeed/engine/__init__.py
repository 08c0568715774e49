"""Tests of tokenspeed/engine."""
