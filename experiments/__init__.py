"""Measurements: the tile sweep, the layer benchmark, the report made from their results."""
