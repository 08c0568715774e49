"""The launches of a decoder layer among each other, and the choice of tiles there."""
