"""Tests of tokenspeed/weights."""
