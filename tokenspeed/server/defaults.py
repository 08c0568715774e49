"""What the server does where nothing else is said; the command line shows it without the server's libraries."""

BODY_BYTES = 4 << 20
"""Of a request at most: a prompt of a million tokens."""
DRAIN_S = 30
"""Seconds that requests under way have to end by themselves."""
METRICS_PREFIX = "tokenspeed"
