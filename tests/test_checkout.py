"""A source checkout that is imported as it is: its native half is not compiled."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "relu_ops"


def test_a_checkout_says_what_to_do(tmp_path: Path) -> None:
    unbuilt = shutil.ignore_patterns("*.so", "__pycache__")
    shutil.copytree(PACKAGE, tmp_path / "relu_ops", ignore=unbuilt)
    code = "import sys; sys.path.insert(0, sys.argv[1]); import relu_ops; relu_ops.load('x')"
    done = subprocess.run(
        [sys.executable, "-S", "-c", code, str(tmp_path)], capture_output=True, text=True
    )
    assert done.returncode == 1
    assert done.stderr.splitlines()[-2:] == [
        f"ImportError: relu_ops is imported from {tmp_path}/relu_ops/native, where its native half "
        "is not compiled: that is a source checkout",
        "hint: run python in another folder, or with -P, to use the installed package; or install "
        "the checkout with pip install -e .",
    ]
