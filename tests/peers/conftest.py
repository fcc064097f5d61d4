"""Parity with the peers' own packages; run by `pytest -m peers tests/peers`."""

from pathlib import Path

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent):
            item.add_marker(pytest.mark.peers)
            item.add_marker(pytest.mark.slow)  # so that `pytest -m "not slow"` leaves them out
            item.add_marker(pytest.mark.filterwarnings("ignore"))
