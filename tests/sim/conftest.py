"""`--few-seeds`: each test of the simulator with its first seeds only, to measure coverage without running for long."""

import pytest

FEW = 2


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--few-seeds", action="store_true", help=f"run tests of the simulator with {FEW} seeds at most")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.getoption("--few-seeds"):
        return
    late = [item for item in items if isinstance(item, pytest.Function) and seed_of(item) >= FEW]
    config.hook.pytest_deselected(items=late)
    items[:] = [item for item in items if item not in late]


def seed_of(item: pytest.Function) -> int:
    """Return the seed that a test was given, 0 if none was."""
    seed = item.callspec.params.get("seed", 0) if hasattr(item, "callspec") else 0
    return seed if isinstance(seed, int) else 0
