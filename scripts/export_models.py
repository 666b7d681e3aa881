"""Write the ONNX models of relu_ops to a folder, or check that they are there byte for byte."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from relu_ops import graphs
from relu_ops.errors import ReluOpsError

MODELS = Path(__file__).resolve().parents[1] / "models"


def main() -> int:
    """Run the command line; return its exit code: 0 fine, 1 the check failed, 2 bad usage."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", nargs="?", type=Path, default=MODELS, help="default: models/")
    parser.add_argument("--check", action="store_true", help="compare, write nothing")
    arguments = parser.parse_args()
    try:
        return check(arguments.folder) if arguments.check else export(arguments.folder)
    except (ReluOpsError, OSError) as error:
        print(f"export_models: {error}", file=sys.stderr)
        return 2


def export(folder: Path) -> int:
    """Write the files and list them."""
    for name in graphs.export(folder):
        print(folder / name)
    return 0


def check(folder: Path) -> int:
    """List the files that are not as they should be, each with the reason."""
    wrong = graphs.differences(folder)
    for name, state in wrong.items():
        print(f"{folder / name}: {state}")
    if wrong:
        hint = "run export_models.py without --check, and delete what is extra"
        print(f"export_models: {len(wrong)} files differ\nhint: {hint}", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
