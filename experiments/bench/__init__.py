"""What every experiment stands on: options, the record of a result and its log, cases, timing, numerics, tables."""
