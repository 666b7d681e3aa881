"""What every test shares: a compile cache of its own, and no tuning.

Processes that tests start import the package that is tested and the modules of this folder.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

import pytest

import relu_ops
from relu_ops.runtime import driver
from relu_ops.runtime import operator as careful_way
from relu_ops.runtime.operator import Operator

_cache = tempfile.TemporaryDirectory(prefix="relu_ops-tests-")
os.environ["RELU_OPS_CACHE"] = os.path.join(_cache.name, "cache")
# Nobody can write there: what one test tuned, others would heed.
os.environ["RELU_OPS_TUNING"] = os.path.join(os.devnull, "none")

_path = [str(Path(relu_ops.__file__).parents[1]), str(Path(__file__).parent)]
os.environ["PYTHONPATH"] = os.pathsep.join([*_path, *filter(None, [os.getenv("PYTHONPATH")])])


@pytest.fixture
def careful(monkeypatch: pytest.MonkeyPatch) -> list[Operator]:
    """The operator of every call that went the careful way."""
    calls: list[Operator] = []
    original = careful_way.careful_call

    def counted(op: Operator, *arguments: Any) -> Any:
        calls.append(op)
        return original(op, *arguments)

    monkeypatch.setattr(careful_way, "careful_call", counted)
    return calls


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what needs a device, with the reason, where there is none."""
    for item in items:
        if item.get_closest_marker("gpu") and not driver.probe().gpus:
            item.add_marker(pytest.mark.skip(reason="there is no CUDA device"))
