"""Bodies that nobody thought of, against the server: `make test-fuzz`."""
