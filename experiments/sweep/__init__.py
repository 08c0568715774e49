"""The sweep: every tile of every op, is it feasible, is it right, how fast is it."""
