"""Local functions: which are called, what of them is needed, and what a call binds.

Not `onnx.inliner`: it drops the defaults of attributes, wants one opset for all, and stops at
functions that nobody calls. A call is not written out as nodes either; the importer goes into it
with a `Frame` and with the caller's values under the function's names.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TypeVar

import onnx
import onnx.defs
from onnx import AttributeProto, FunctionProto, NodeProto

from relu_ops.compiler.frontend import limits
from relu_ops.compiler.frontend.scope import Frame, normal_domain, opsets_of
from relu_ops.errors import ModelError, UnsupportedError

Key = tuple[str, str, str]
"""Domain, name and overload."""

_Value = TypeVar("_Value")


def _key(function: FunctionProto) -> Key:
    return normal_domain(function.domain), function.name, function.overload


def _name(key: Key) -> str:
    domain, name, overload = key
    return f"{domain or 'ai.onnx'}.{name}" + (f" (overload {overload})" if overload else "")


def _wanted(function: FunctionProto, call: NodeProto) -> frozenset[str]:
    """The outputs of a function to which a call gives names."""
    pairs = zip(function.output, call.output, strict=False)
    return frozenset(formal for formal, name in pairs if name)


class Functions:
    """The local functions of a model, as its graph calls them."""

    def __init__(self, proto: onnx.ModelProto) -> None:
        self._graph = proto.graph
        self._functions: dict[Key, FunctionProto] = {}
        self._doubled: set[Key] = set()
        for function in proto.functions:
            if self._functions.setdefault(_key(function), function) is not function:
                self._doubled.add(_key(function))
        self._needed: dict[tuple[Key, frozenset[str]], frozenset[str]] = {}
        self._bodies: dict[tuple[Key, frozenset[str]], list[NodeProto]] = {}

    def called(self, node: NodeProto) -> FunctionProto | None:
        """The function that a node calls, or None where it is an operator."""
        return self._functions.get((normal_domain(node.domain), node.op_type, node.overload))

    # ---- what is needed

    def live(
        self, nodes: Sequence[NodeProto], wanted: Iterable[str]
    ) -> tuple[list[NodeProto], set[str]]:
        """The nodes that some wanted value depends on, in their order, and all names they read.

        A call is among them without the results that nobody wants, and without the operands that
        the others do not depend on: as if it left them out.
        """
        found, needed = [], set(wanted) - {""}
        for node in reversed(nodes):
            if not needed.isdisjoint(node.output):
                function = self.called(node)
                found.append(node if function is None else self._trimmed(node, function, needed))
                needed |= set(found[-1].input) - {""}
        return found[::-1], needed

    def _trimmed(self, call: NodeProto, function: FunctionProto, needed: set[str]) -> NodeProto:
        copy = NodeProto()
        copy.CopyFrom(call)
        copy.output[:] = [name if name in needed else "" for name in call.output]
        formals = self._formals(function, _wanted(function, copy))
        for k, formal in enumerate(function.input[: len(call.input)]):
            if formal not in formals:
                copy.input[k] = ""
        return copy

    def body(self, function: FunctionProto, call: NodeProto) -> list[NodeProto]:
        """The nodes of a function that a call's results depend on."""
        wanted = _wanted(function, call)
        key = _key(function), wanted
        if key not in self._bodies:
            self._bodies[key] = self.live(function.node, wanted)[0]
        return self._bodies[key]

    def _formals(self, function: FunctionProto, wanted: frozenset[str]) -> frozenset[str]:
        """The inputs of a function that some of its outputs depend on."""
        key = _key(function), wanted
        if key not in self._needed:
            _, needed = self.live(function.node, wanted)
            self._needed[key] = frozenset(needed) & frozenset(function.input)
        return self._needed[key]

    def reached(self, frame: Frame) -> Iterator[tuple[NodeProto, Frame]]:
        """Every operator's node that some output needs, once, with where it stands."""
        outputs = (output.name for output in self._graph.output)
        pending = [(self.live(self._graph.node, outputs)[0], frame)]
        seen: set[tuple[Key, frozenset[str]]] = set()
        while pending:
            nodes, inside = pending.pop()
            for node in nodes:
                function = self.called(node)
                if function is None:
                    yield node, inside
                    continue
                wanted = _wanted(function, node)
                if (_key(function), wanted) not in seen:
                    seen.add((_key(function), wanted))
                    pending.append((self.body(function, node), _inside(function, inside, node)))

    # ---- what must hold

    def check(self) -> None:
        """Refuse functions that call themselves, or that make a whole world of nodes."""
        sizes: dict[Key, int] = {}
        size = self._size(self._graph.node, sizes, ())
        if sizes and size > limits.INLINED_NODES:
            raise UnsupportedError(
                f"the model's local functions inline to {size} nodes; at most "
                f"{limits.INLINED_NODES} are supported"
            )

    def _size(
        self, nodes: Iterable[NodeProto], sizes: dict[Key, int], path: tuple[Key, ...]
    ) -> int:
        total = 0
        for node in nodes:
            function = self.called(node)
            if function is None:
                total += 1
                continue
            key = _key(function)
            if key not in sizes:
                self._check_call(key, path)
                sizes[key] = self._size(function.node, sizes, (*path, key))
            total += sizes[key]
        return total

    def _check_call(self, key: Key, path: tuple[Key, ...]) -> None:
        if key in path:
            cycle = " > ".join(_name(k) for k in (*path[path.index(key) :], key))
            raise ModelError(f"function {_name(key)} calls itself ({cycle}), which ONNX forbids")
        if len(path) >= limits.CALL_DEPTH:
            raise ModelError(f"local functions call each other more than {limits.CALL_DEPTH} deep")
        if key in self._doubled:
            raise ModelError(
                f"the model has several functions {_name(key)}; one that is called must be unique"
            )


# ---- a call


def bound(node: NodeProto, names: Mapping[str, object], frame: Frame) -> NodeProto:
    """The node with an empty name for each operand that its function was not given.

    Args:
        node: As `Frame.resolved` gives it.
        names: What each name there stands for; None for an operand that was left out.
        frame: Where the node stands.
    """
    for name in node.input:
        if name and name not in names:
            raise ModelError(
                f"{frame.describe(node)}: input {name!r} is computed by no node before it"
            )
    if all(names[name] is not None for name in node.input if name):
        return node
    copy = NodeProto()
    copy.CopyFrom(node)
    copy.input[:] = [n if n and names[n] is not None else "" for n in node.input]
    while copy.input and not copy.input[-1]:
        del copy.input[-1]
    return copy


def operands_of(
    function: FunctionProto, node: NodeProto, names: Mapping[str, _Value | None]
) -> dict[str, _Value | None]:
    """What the names of a function's inputs stand for in a call; None for what is left out."""
    given = [names[name] if name else None for name in node.input]
    given += [None] * (len(function.input) - len(given))
    return dict(zip(function.input, given, strict=True))


def _inside(function: FunctionProto, frame: Frame, node: NodeProto) -> Frame:
    """The frame of a call, without attributes."""
    return Frame(opsets_of(function.opset_import), {}, (node, frame), _name(_key(function)))


def enter(function: FunctionProto, node: NodeProto, frame: Frame) -> Frame:
    """The frame of a call.

    Args:
        function: What is called.
        node: The call, as `Frame.resolved` gives it.
        frame: Where the call stands.

    Returns:
        A frame in which every attribute of the function has its value: the call's, or the default.

    Raises:
        ModelError: The call does not fit the function.
    """
    _check_shadow(function, frame, node)
    _check_count(function, frame, node, "inputs", node.input, function.input)
    _check_count(function, frame, node, "outputs", node.output, function.output)
    attributes: dict[str, AttributeProto | None] = dict.fromkeys(function.attribute)
    attributes |= {a.name: a for a in function.attribute_proto}
    given = {a.name: a for a in node.attribute}
    unknown = given.keys() - attributes.keys()
    if unknown:
        _check_known(function, frame, node, unknown, attributes)
    return replace(_inside(function, frame, node), attributes=attributes | given)


def _check_count(
    function: FunctionProto,
    frame: Frame,
    node: NodeProto,
    what: str,
    given: Sequence[str],
    formal: Sequence[str],
) -> None:
    if len(given) > len(formal):
        raise ModelError(
            f"{frame.describe(node)}: function {_name(_key(function))} has {len(formal)} {what} "
            f"(not {len(given)}): {', '.join(formal)}"
        )


def _check_known(
    function: FunctionProto,
    frame: Frame,
    node: NodeProto,
    unknown: Iterable[str],
    declared: Iterable[str],
) -> None:
    """What nodes refer to and a call gives counts, where the function forgets to declare it."""
    every: Iterator[AttributeProto] = (a for one in function.node for a in one.attribute)
    known = {*declared, *(a.ref_attr_name for a in every if a.ref_attr_name)}
    for name in sorted(set(unknown) - known):
        raise ModelError(
            f"{frame.describe(node)}: function {_name(_key(function))} has no attribute {name!r}; "
            f"it has {', '.join(sorted(known)) or 'none'}"
        )


def _check_shadow(function: FunctionProto, frame: Frame, node: NodeProto) -> None:
    """An operator of ONNX and a function of its name: runtimes differ in which they take."""
    if normal_domain(function.domain) != "":
        return
    try:
        version = frame.opsets.get("", onnx.defs.onnx_opset_version())
        onnx.defs.get_schema(function.name, version, "")
    except onnx.defs.SchemaError:
        return
    raise ModelError(
        f"{frame.describe(node)}: {function.name} is an operator of opset {version} and a local "
        "function too, and runtimes differ in which of them they take",
        "give the function a domain of its own",
    )
