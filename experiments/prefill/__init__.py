"""Prefill: the time to the first token, and that of a chunk of a long prompt beside the time of its parts."""
