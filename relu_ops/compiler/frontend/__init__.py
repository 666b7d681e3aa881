"""Imports an ONNX model into an `ir.Graph`: decides what is in scope, and what a node means.

Here the differences between operator versions end, and those between ways to write one graph down:
behind this package an operator has one form. Everything that a model can get wrong is an error of
this package. Knows onnx; never imports TVM.

One module each: `read` (whatever holds a model, to a `ModelProto`; with `files`, `objects` and
`external`), `check` (what must hold before anything is imported), `scope` (domains, opsets, where a
node stands), `functions` (calls of local functions; with `inline`, which writes them out),
`importer` (the graph), `operators` (what each operator means) and `shapes` (whether the declared
shapes can work).
"""

from __future__ import annotations

from relu_ops.compiler.frontend.check import check_model
from relu_ops.compiler.frontend.importer import Importer
from relu_ops.compiler.frontend.inline import without_functions
from relu_ops.compiler.frontend.operators import HANDLERS
from relu_ops.compiler.frontend.read import Model, read_model
from relu_ops.contract import ir

__all__ = ["HANDLERS", "Model", "check_model", "import_model", "read_model", "without_functions"]


def import_model(model: Model) -> ir.Graph:
    """Import a model.

    Args:
        model: A `ModelProto`, its serialized bytes, the path of a file, or what another library
            has for a model: an `onnx_ir.Model`, an onnxscript function, a `torch.onnx.ONNXProgram`.
            External data is read only for a path, and only from inside the model's folder.

    Returns:
        The normalised graph.

    Raises:
        ModelError: The model is not valid ONNX.
        UnsupportedError: It is, and needs what relu_ops does not compile.
    """
    proto = read_model(model)
    check_model(proto)
    return Importer(proto).run()
