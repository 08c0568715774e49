"""Tests of tokenspeed/text."""
