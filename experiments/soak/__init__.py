"""Random requests through the engine, each against itself alone."""
