"""Makes the committed record: every graph, level and size here, its pictures, the README's table.

With no arguments it measures for half an hour on 2 cores and writes docs/benchmarks/NAME.json,
docs/benchmarks/NAME/ and the table in README.md. What is not installed is left out, and the record
says so: see docs/benchmarks/README.md for everybody that can take part.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import tqdm

from relu_ops.bench import command, planning, record, runner, tables

ROOT = Path(__file__).resolve().parents[1]


def main() -> int:
    """Measure and write, or write anew from a record that is there."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--name", default="x86-64", help="what to call it, default x86-64")
    parser.add_argument("--folder", type=Path, default=ROOT / "docs" / "benchmarks")
    parser.add_argument("--again", action="store_true", help="draw an existing record again")
    options = parser.parse_args()
    if options.again:
        found = record.read(options.folder / f"{options.name}.json")
    else:
        planned = command.committed()
        command.say_what_is_missing(planned)
        found = runner.measure(
            planned,
            planning.Settings(processes=True),
            progress=lambda items, total, title: tqdm.tqdm(items, title, total),
        )
    print(tables.render(found))
    for path in command.publish(found, options.folder, options.name, ROOT / "README.md"):
        print(path, file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
