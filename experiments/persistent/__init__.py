"""How fast one persistent launch streams all layers of a model: a decode step's skeleton, without its arithmetic."""
