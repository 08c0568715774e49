"""Tests of tokenspeed/measure."""
