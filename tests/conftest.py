"""What every test shares: a compile cache of its own, and no tuning.

Processes that tests start import the package that is tested and the modules of this folder.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest

import relu_ops
from relu_ops import targets

_cache = tempfile.TemporaryDirectory(prefix="relu_ops-tests-")
os.environ["RELU_OPS_CACHE"] = os.path.join(_cache.name, "cache")
os.environ["RELU_OPS_TUNING"] = os.path.join(_cache.name, "none")

_path = [str(Path(relu_ops.__file__).parents[1]), str(Path(__file__).parent)]
os.environ["PYTHONPATH"] = os.pathsep.join([*_path, *filter(None, [os.getenv("PYTHONPATH")])])


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what needs a device, with the reason why none is used."""
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason=targets.CUDA_IS_OFF))
