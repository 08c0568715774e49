import pytest

from tests.compiling import without_optimisations


@pytest.fixture(scope="package", autouse=True)
def quick_to_compile():
    with without_optimisations():
        yield
