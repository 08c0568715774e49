"""Decode attention over a paged or contiguous KV cache, split over keys."""
