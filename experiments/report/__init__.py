"""How a record gets into a table: from experiments/results to README.md and experiments/RESULTS.md."""
