"""Tests of tokenspeed/server."""
