from __future__ import annotations

import pytest


@pytest.fixture
def start(tmp_path):
    """Starts stand-ins of a WebUI, which end with the test."""
    from .standin import StandIn

    running = []

    def starter(*options):
        running.append(StandIn(tmp_path / f"{len(running)}.log", *options))
        return running[-1]

    yield starter
    for one in running:
        one.kill()
