"""Tests of tokenspeed/sampling."""
