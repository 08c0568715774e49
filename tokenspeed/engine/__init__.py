"""The decode step, and the engine: sequences that come and go, over one pool of pages."""
