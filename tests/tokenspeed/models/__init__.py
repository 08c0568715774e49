"""Tests of tokenspeed/models."""
