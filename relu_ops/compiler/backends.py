"""What makes the images of a target: the folder that its row names.

Nothing outside of those folders knows which kinds of targets there are.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any, Protocol

from relu_ops.contract import ir
from relu_ops.targets import Target


class Backend(Protocol):
    """What `backend.BACKEND` of a folder is."""

    @property
    def machine(self) -> int:
        """What the code is for, as an image says it."""

    def compiled(self, name: str, graph: ir.Graph, target: Target) -> tuple[Sequence[Any], Any]:
        """The kernels of a graph, and their code: `cpu.objects.Code`, or a device's as bytes."""

    def requirements(self, target: Target) -> tuple[str, ...]:
        """What an image of a target says of the machines that it runs on."""

    def sources(self, graph: ir.Graph, target: Target) -> Any:
        """The intermediate forms of a graph's kernels: an attribute for each, but for assembly."""


def of(target: Target) -> Backend:
    """The backend of a target."""
    module = importlib.import_module(f"{__package__}.{target.backend.folder}.backend")
    backend: Backend = module.BACKEND
    return backend
