from tests.compiling import without_optimisations

__all__ = ["without_optimisations"]
