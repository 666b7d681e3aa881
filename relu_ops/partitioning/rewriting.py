"""Puts operators in the place of groups. Weights, names and everything else stay as they are."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import onnx
from onnx import NodeProto, helper

from relu_ops.interop.onnxruntime import DIGEST, DOMAIN
from relu_ops.partitioning.graphs import Network, Scope, sort, subgraphs
from relu_ops.partitioning.groups import Group

_FUNCTIONS_FROM, _FREE_INITIALIZERS_FROM = 8, 4
"""Versions of ONNX's format: that has local functions; where an initializer needs no input."""

Choice = tuple[Group, str]
"""A group, and what the node is called that takes its place."""


def rewrite(
    network: Network,
    choices: Sequence[Choice],
    functions: Iterable[onnx.FunctionProto],
    digest: str,
) -> None:
    """Change a model in place."""
    proto = network.proto
    for scope in reversed(network.scopes):  # inner graphs first: outer nodes are copied with them
        own = [(group, kind) for group, kind in choices if group.scope is scope]
        if own:
            _replace(scope, own)
    _import_domain(proto.opset_import)
    for function in proto.functions:
        if any(node.domain == DOMAIN for node in _every(function.node)):
            _import_domain(function.opset_import)
    proto.functions.extend(functions)
    _raise_version(proto)
    _forget(proto.graph, {name for group, _ in choices for name in _inner(group)})
    proto.metadata_props.add(key=DIGEST, value=digest)


def _replace(scope: Scope, choices: Sequence[Choice]) -> None:
    gone = {id(node) for group, _ in choices for node in group.nodes}
    kept = [_copy(node) for node in scope.nodes if id(node) not in gone]
    # Each stands where the last of its nodes did; what that moves is sorted.
    at = {id(group.nodes[-1]): (group, kind) for group, kind in choices}
    nodes, kept_ones = [], iter(kept)
    for node in scope.nodes:
        if id(node) in at:
            nodes.append(_node(*at[id(node)]))
        elif id(node) not in gone:
            nodes.append(next(kept_ones))
    ordered = sort(nodes)
    del scope.nodes[:]
    scope.nodes.extend(ordered)


def _node(group: Group, kind: str) -> NodeProto:
    name = next((node.name for node in reversed(group.nodes) if node.name), group.outputs[0])
    return helper.make_node(
        kind, group.inputs, group.outputs, name=f"{DOMAIN}/{name}", domain=DOMAIN
    )


def _copy(node: NodeProto) -> NodeProto:
    copy = NodeProto()
    copy.CopyFrom(node)
    return copy


def _every(nodes: Iterable[NodeProto]) -> Iterable[NodeProto]:
    for node in nodes:
        yield node
        for _, graph in subgraphs(node):
            yield from _every(graph.node)


def _inner(group: Group) -> list[str]:
    made = [name for node in group.nodes for name in node.output]
    return [name for name in made if name not in group.outputs]


def _import_domain(imports: Any) -> None:
    if all(entry.domain != DOMAIN for entry in imports):
        imports.add(domain=DOMAIN, version=1)


def _raise_version(proto: onnx.ModelProto) -> None:
    """Local functions need a newer format; in an old one initializers are inputs, too."""
    if proto.ir_version < _FREE_INITIALIZERS_FROM:
        weights = {tensor.name for tensor in proto.graph.initializer}
        kept = [info for info in proto.graph.input if info.name not in weights]
        del proto.graph.input[:]
        proto.graph.input.extend(kept)
    proto.ir_version = max(proto.ir_version, _FUNCTIONS_FROM)


def _forget(graph: onnx.GraphProto, names: set[str]) -> None:
    """Drop what is declared of values that are gone."""
    kept = [info for info in graph.value_info if info.name not in names]
    del graph.value_info[:]
    graph.value_info.extend(kept)
