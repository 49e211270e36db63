"""Settings for all tests."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # read when torch loads; spinning threads starve a busy machine

import pytest
import torch
from hypothesis import settings

from .support.kernels import needs_kernels

settings.register_profile("addnorm", derandomize=True, deadline=None, max_examples=60)
settings.load_profile("addnorm")


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="run the tests that take minutes, too")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "slow: takes minutes; runs with --slow")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.name.startswith("test_fus") and item.path.name != "test_fuse_kernels.py":
            item.add_marker(needs_kernels)
    if not config.getoption("--slow"):
        for item in items:
            if "slow" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="takes minutes: pytest --slow runs it"))
