"""What verbs say, and how they end. Data goes to stdout, talk to stderr."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

FINE, CHECK_FAILED, UNUSABLE = 0, 1, 2
"""Exit codes: fine; a check failed; bad usage, or nothing usable here."""


def say(text: str) -> None:
    """Say something to whoever sits there."""
    if sys.stderr is not None:  # print would take None for stdout, which is for data
        print(text, file=sys.stderr)


def progress(items: Iterable[Any], total: int, title: str) -> Iterable[Any]:
    """Show how far an iteration is, where tqdm is installed."""
    try:
        import tqdm
    except ImportError:
        return items
    return tqdm.tqdm(items, total=total, desc=title, disable=None)
