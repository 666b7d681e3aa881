"""Holds a partitioned model against the model: the same bits, or known deviations of onnxruntime.

Where the outputs differ, they are explained in two steps. Without the operators, by its local
functions, the partitioned model gives the model's bits: what is not in a group computes the same.
And every group's operator, on what it was given in that very run, differs from onnxruntime's own
nodes only where a row of the table of deviations says so. Then every bit that differs follows from
those.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from relu_ops.compiler import frontend
from relu_ops.interop import onnxruntime as door
from relu_ops.partitioning import hosted
from relu_ops.partitioning.hosted import Source
from relu_ops.verification.compare import all_same
from relu_ops.verification.explain import explain
from relu_ops.verification.referees import ONNXRUNTIME, referees, without_functions

Feeds = Mapping[str, np.ndarray]


class Difference(Exception):
    """The outputs differ, and nothing that is known explains it."""


def check(source: Source, folder: Path, digest: str, feeds: Sequence[Feeds]) -> Counter[str]:
    """Compare a partitioned model's outputs with the model's.

    Returns:
        The causes of what differs, and how many elements of nodes each touched: none, where every
        bit is the same.

    Raises:
        Difference: Something differs that no cause explains.
    """
    model = folder / door.MODEL
    stock = hosted.session_of(source, hosted.options_of(1))
    own = hosted.session_of(model, _with_bundle(folder, digest))
    causes: Counter[str] = Counter()
    for feed in feeds:
        want, got = _run(stock, feed), _run(own, feed)
        if not _same(want, got):
            causes += _explained(model, folder, digest, feed, want)
    return causes


def _with_bundle(folder: Path, digest: str) -> Any:
    return hosted.with_bundle(hosted.options_of(1), folder / door.BUNDLE, digest)


def _run(session: Any, feeds: Feeds) -> list[Any]:
    return list(hosted.run(session, feeds).values())


def _same(want: Sequence[Any], got: Sequence[Any]) -> bool:
    arrays = all(isinstance(x, np.ndarray) and x.dtype.kind in "fiub" for x in (*want, *got))
    if not arrays:  # texts and sequences: no group gives them
        return all(
            np.array_equal(np.asarray(a), np.asarray(b)) for a, b in zip(want, got, strict=True)
        )
    return all_same(list(want), list(got))


def _explained(
    model: Path, folder: Path, digest: str, feed: Feeds, want: Sequence[Any]
) -> Counter[str]:
    by_functions = hosted.session_of(model, hosted.options_of(1))
    if not _same(want, _run(by_functions, feed)):
        raise Difference(
            "onnxruntime computes what is in no group otherwise, where groups stand apart"
        )
    proto = onnx.load(model, load_external_data=False)
    nodes = [node for node in proto.graph.node if node.domain == door.DOMAIN]
    values = _values(proto, nodes, folder, digest, feed)
    causes: Counter[str] = Counter()
    for node in nodes:
        causes += _explained_node(_function(proto, node), node, values)
    if not causes:
        raise Difference("the outputs differ, though every operator gives onnxruntime's bits")
    return causes


def _function(proto: onnx.ModelProto, node: onnx.NodeProto) -> onnx.FunctionProto:
    return next(f for f in proto.functions if (f.domain, f.name) == (node.domain, node.op_type))


def _values(
    proto: onnx.ModelProto,
    nodes: Sequence[onnx.NodeProto],
    folder: Path,
    digest: str,
    feed: Feeds,
) -> dict[str, np.ndarray]:
    """What the operators were given and gave in a run."""
    outputs = {info.name for info in proto.graph.output}
    weights = {tensor.name for tensor in proto.graph.initializer}
    wanted = dict.fromkeys(name for node in nodes for name in (*node.input, *node.output))
    shown = [name for name in wanted if name not in outputs | weights | set(feed)]
    proto.graph.output.extend(onnx.ValueInfoProto(name=name) for name in shown)
    with hosted.exposed(proto, folder) as path:
        found = hosted.run(hosted.session_of(path, _with_bundle(folder, digest)), feed)
    constant = [tensor for tensor in proto.graph.initializer if tensor.name in wanted]
    return (
        dict(feed) | found | {t.name: onnx.numpy_helper.to_array(t, str(folder)) for t in constant}
    )


def _explained_node(
    function: onnx.FunctionProto, node: onnx.NodeProto, values: Mapping[str, np.ndarray]
) -> Counter[str]:
    inputs = [values[name] for name in node.input]
    ours = [values[name] for name in node.output]
    proto = _alone(function, inputs, ours)
    found, absent = referees(proto, frontend.import_model(proto))
    contract = found[0].run(inputs)
    if not all_same(contract, ours):
        raise Difference(f"operator {node.op_type} gives other bits than the contract")
    stock = next((one for one in found if one.engine == ONNXRUNTIME), None)
    if stock is None:
        raise Difference(f"onnxruntime alone refuses {node.op_type}: {absent[ONNXRUNTIME]}")
    theirs = stock.run(inputs)
    if all_same(contract, theirs):
        return Counter()
    verdict = explain(stock, without_functions(proto), inputs, contract, theirs)
    if verdict.unexplained:
        raise Difference(f"{node.op_type}: {verdict.unexplained[0]}")
    return Counter(verdict.causes)


def _alone(
    function: onnx.FunctionProto, inputs: Sequence[np.ndarray], outputs: Sequence[np.ndarray]
) -> onnx.ModelProto:
    """A model of what a function does, for arrays of some dtypes and ranks."""

    def info(name: str, x: np.ndarray) -> onnx.ValueInfoProto:
        code = onnx.helper.np_dtype_to_tensor_dtype(x.dtype)
        return onnx.helper.make_tensor_value_info(name, code, [None] * x.ndim)

    graph = onnx.helper.make_graph(
        list(function.node),
        "group",
        list(map(info, function.input, inputs)),
        list(map(info, function.output, outputs)),
    )
    model = onnx.helper.make_model(graph, opset_imports=function.opset_import, ir_version=8)
    return model
