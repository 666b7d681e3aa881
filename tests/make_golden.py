"""Writes the bundle of the present format that later releases must still load.

    python tests/make_golden.py

Run it when FORMAT_VERSION was raised, or, before the format was ever released, when the interface
between runtime and libraries changed. A bundle of an older format is never made again.
"""

from __future__ import annotations

from pathlib import Path

from relu_ops import bundle, compiler, graphs


def main() -> None:
    path = Path(__file__).with_name("data") / f"format-{bundle.FORMAT_VERSION}.bundle"
    print(path, compiler.build(graphs.leaky_relu(alpha=0.1), ["x86-64-v2"], path))


if __name__ == "__main__":
    main()
