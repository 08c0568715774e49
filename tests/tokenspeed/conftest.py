from tests.compiling import programs_run_often, without_optimisations

__all__ = ["programs_run_often", "without_optimisations"]
