"""The projections back to the model's width: `out` (after attention) and `down` (after the MLP's product)."""
