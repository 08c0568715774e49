"""Decode from end to end: milliseconds a token beside the time that its bytes take."""
