"""What every test shares: a compile cache of its own, no tuning, and room for many libraries.

Processes that tests start import the package that is tested and the modules of this folder.
"""

from __future__ import annotations

import os
import resource
import tempfile
from pathlib import Path

import pytest

import relu_ops

_cache = tempfile.TemporaryDirectory(prefix="relu_ops-tests-")
os.environ["RELU_OPS_CACHE"] = os.path.join(_cache.name, "cache")
os.environ["RELU_OPS_TUNING"] = os.path.join(_cache.name, "none")

_path = [str(Path(relu_ops.__file__).parents[1]), str(Path(__file__).parent)]
os.environ["PYTHONPATH"] = os.pathsep.join([*_path, *filter(None, [os.getenv("PYTHONPATH")])])

# Every loaded library holds a descriptor; the suite loads thousands in one process.
_soft, _hard = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (_hard, _hard))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what needs a device, with the reason why there is none."""
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if not marked:
        return
    from relu_ops.runtime import driver

    machine = driver.machine()
    if not machine.gpus:
        reason = machine.driver_problem or "the driver lists none"
        for item in marked:
            item.add_marker(pytest.mark.skip(reason=f"there is no CUDA device ({reason})"))
