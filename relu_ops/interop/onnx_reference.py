"""The nodes of bundles in `onnx.reference`: an `OpRun` for each operator.

`ReferenceEvaluator(model, new_ops=operators("model/operators.bundle"))` runs a partitioned model
with compiled operators; without them it runs the local functions that the model holds.
"""

from __future__ import annotations

import os
from typing import Any, ClassVar

import numpy as np
from onnx.reference.op_run import OpRun

from relu_ops.bundle import store as bundles
from relu_ops.interop.onnxruntime import DOMAIN, node_type
from relu_ops.runtime import dispatch
from relu_ops.runtime.operator import Operator

__all__ = ["BundleOp", "operators"]


class BundleOp(OpRun):
    """A node that runs an operator of a bundle; `operators` makes a class of it for each.

    Attributes:
        operator: The operator.
    """

    op_domain = DOMAIN
    operator: ClassVar[Operator]

    def _run(self, *inputs: np.ndarray, **attributes: Any) -> tuple[np.ndarray, ...]:
        results = self.operator(*inputs)
        return results if isinstance(results, tuple) else (results,)


def operators(path: str | os.PathLike[str], digest: str | None = None) -> list[type[BundleOp]]:
    """A class for each operator of a bundle, as `ReferenceEvaluator` takes them.

    Args:
        path: The bundle's directory.
        digest: Its expected digest, or None to take the one found.

    Raises:
        BundleError: The bundle is missing, damaged, or not the expected one.
        TargetError: No image can run here.
    """
    bundle = bundles.read(path, digest)
    return [
        type(
            node_type(name, bundle.digest),
            (BundleOp,),
            {"operator": dispatch.operator_of(bundle, name=name)},
        )
        for name in bundle.handle.operators
    ]
