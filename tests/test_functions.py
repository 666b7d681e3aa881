"""Local functions mean what the IR says: against onnxruntime, and against no functions at all."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from cases import assert_same_bits, differing
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import AttributeProto, FunctionProto, NodeProto, helper
from short_models import constant, function, model, node, opsets, referring, refusal, result, value
from test_cells import GROUPS
from test_deviations import Question, _more, questions

from relu_ops.compiler.frontend import import_model, inline, without_functions
from relu_ops.contract import reference
from relu_ops.errors import ModelError, UnsupportedError


def act(*nodes: NodeProto, call: dict[str, Any] | None = None, **more: Any) -> onnx.ModelProto:
    """A model that calls one function, Act, of a to b."""
    called = node("Act", "x", "y", domain="local", **(call or {}))
    return model([called], functions=[function("Act", "a", "b", nodes, **more)])


def leaky() -> NodeProto:
    return referring(node("LeakyRelu", "a", "b"), alpha="slope")


def by_onnxruntime(made: onnx.ModelProto, *arrays: np.ndarray) -> list[np.ndarray]:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(
        made.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    names = [i.name for i in session.get_inputs()]
    return session.run(None, dict(zip(names, arrays, strict=True)))


# ---------------------------------------------------------------- attributes


@pytest.mark.parametrize(
    ("made", "wanted"),
    [
        (act(leaky(), slope=0.125), -0.125),
        (act(leaky(), slope=0.125, call={"slope": 0.5}), -0.5),
        (act(leaky(), attributes=["slope"], call={"slope": 0.5}), -0.5),
        (act(leaky(), attributes=["slope"]), -0.01),
        (act(leaky(), call={"slope": 0.5}), -0.5),
    ],
    ids=["default", "given", "given-no-default", "absent", "undeclared-given"],
)
def test_a_reference_is_the_calls_value_or_the_default(
    made: onnx.ModelProto, wanted: float
) -> None:
    assert result(made, [-1.0]) == [np.float32(wanted)]
    assert by_onnxruntime(made, np.float32([-1]))[0].tolist() == [np.float32(wanted)]


@pytest.mark.parametrize(
    ("name", "kind", "default", "wanted"),
    [
        ("value_float", AttributeProto.FLOAT, 0.25, [-0.75]),
        ("value_floats", AttributeProto.FLOATS, [0.25], [-0.75]),
        ("value", AttributeProto.TENSOR, constant("", np.float32(0.25)), [-0.75]),
    ],
)
def test_a_constant_may_refer_to_a_default(
    name: str, kind: int, default: Any, wanted: list[float]
) -> None:
    made = referring(node("Constant", "", "c"), kind, **{name: "number"})
    assert result(act(made, node("Add", "a c", "b"), number=default), [-1.0]) == wanted


def test_an_integer_default_decides_a_dtype() -> None:
    cast = referring(node("Cast", "a", "t"), AttributeProto.INT, to="kind")
    back = node("Cast", "t", "b", to=onnx.TensorProto.FLOAT)
    assert result(act(cast, back, kind=onnx.TensorProto.INT32), [-1.5]) == [-1]
    given = act(cast, back, kind=onnx.TensorProto.INT32, call={"kind": onnx.TensorProto.DOUBLE})
    assert result(given, [-1.5]) == [-1.5]


def nested(outer_slope: float | None, inner_slope: float | None, **call: float) -> onnx.ModelProto:
    inner = function(
        "Inner",
        "a",
        "b",
        [leaky()],
        **({"attributes": ["slope"]} if inner_slope is None else {"slope": inner_slope}),
    )
    passed_on = referring(node("Inner", "p", "q", domain="local"), slope="steep")
    outer = function(
        "Outer",
        "p",
        "q",
        [passed_on],
        **({"attributes": ["steep"]} if outer_slope is None else {"steep": outer_slope}),
    )
    called = node("Outer", "x", "y", domain="local", **call)
    return model([called], functions=[outer, inner])


@pytest.mark.parametrize(
    ("made", "wanted"),
    [
        (nested(0.5, 0.25), -0.5),
        (nested(None, 0.25), -0.25),
        (nested(0.5, None), -0.5),
        (nested(None, None), -0.01),
        (nested(0.5, 0.25, steep=0.75), -0.75),
    ],
)
def test_a_reference_is_passed_on_and_an_absent_one_leaves_the_inner_default(
    made: onnx.ModelProto, wanted: float
) -> None:
    assert result(made, [-1.0]) == [np.float32(wanted)]
    assert by_onnxruntime(made, np.float32([-1]))[0].tolist() == [np.float32(wanted)]


def test_an_attribute_of_another_type_is_refused() -> None:
    assert refusal(act(leaky(), attributes=["slope"], call={"slope": 1})) == (
        "node of output ['b'] of function local.Act, called by node of output ['y']: attribute "
        "'alpha' must be a FLOAT, and 'slope', to which it refers, is a INT"
    )


def test_an_attribute_that_the_function_does_not_have_is_refused() -> None:
    assert refusal(act(leaky(), slope=0.125, call={"slop": 1.0})) == (
        "node of output ['y']: function local.Act has no attribute 'slop'; it has slope"
    )


def test_a_reference_to_what_the_function_does_not_declare_is_refused() -> None:
    """onnx.printer writes no defaults: what it wrote would be read as the operator's own."""
    written = onnx.printer.to_text(act(leaky(), slope=0.125))
    assert refusal(onnx.parser.parse_model(written)) == (
        "node of output ['b'] of function local.Act, called by node of output ['y']: attribute "
        "'alpha' refers to 'slope', which the function does not declare and the call does not "
        "give\nhint: declare it in the function: in attribute, or with a default in attribute_proto"
    )


def test_a_reference_outside_of_functions_is_refused() -> None:
    assert refusal(model([referring(node("LeakyRelu", "x", "y", name="act"), alpha="slope")])) == (
        "node 'act': attribute 'alpha' refers to the attribute 'slope' of a function, and the node "
        "stands in none"
    )


# ---------------------------------------------------------------- operands


def clip(inputs: str) -> onnx.ModelProto:
    bounds = [constant("low", np.float32(-1)), constant("high", np.float32(1))]
    called = node("Act", inputs, "y", domain="local")
    body = [node("Clip", "a l h", "b")]
    return model([called], initializers=bounds, functions=[function("Act", "a l h", "b", body)])


@pytest.mark.parametrize(
    ("inputs", "wanted"),
    [("x low high", [-1, 1]), ("x low", [-1, 3]), ("x - high", [-3, 1]), ("x", [-3, 3])],
)
def test_operands_that_a_call_leaves_out_are_absent_inside(
    inputs: str, wanted: list[float]
) -> None:
    assert result(clip(inputs), [-3.0, 3.0]) == wanted
    assert by_onnxruntime(clip(inputs), np.float32([-3, 3]))[0].tolist() == wanted


def test_an_operand_that_an_operator_needs_and_a_call_leaves_out_is_refused() -> None:
    body = [node("Add", "a c", "b", name="sum")]
    called = node("Act", "x", "y", domain="local", name="call")
    message = refusal(model([called], functions=[function("Act", "a c", "b", body)]))
    assert message.startswith(
        "node 'sum' of function local.Act, called by node 'call' is not valid"
    )


def test_a_call_with_too_many_operands_or_results_is_refused() -> None:
    made = function("Act", "a", "b", [node("Relu", "a", "b")])
    many = node("Act", "x x", "y", domain="local", name="call")
    assert refusal(model([many], functions=[made])) == (
        "node 'call': function local.Act has 1 inputs (not 2): a"
    )
    many = node("Act", "x", "y z", domain="local", name="call")
    assert refusal(model([many], functions=[made])) == (
        "node 'call': function local.Act has 1 outputs (not 2): b"
    )


def test_a_function_whose_output_is_its_input() -> None:
    swap = function("Swap", "a b", "b a", [])
    nodes = [node("Swap", "x z", "p q", domain="local"), node("Sub", "p q", "y")]
    made = model(nodes, [value("x"), value("z")], functions=[swap])
    assert result(made, [1.0], [3.0]) == [2.0]


def test_a_result_that_a_call_leaves_out() -> None:
    body = [node("Relu", "a", "b"), node("Neg", "a", "c")]
    nodes = [node("Act", "x", "- y", domain="local")]
    assert result(model(nodes, functions=[function("Act", "a", "b c", body)]), [2.0]) == [-2.0]


def test_names_inside_are_the_functions_own() -> None:
    """x, y and t mean something else in the graph and in either call."""
    body = [node("Neg", "y", "t"), node("Add", "t y", "x")]
    nodes = [
        node("Relu", "x", "t"),
        node("Act", "t", "u", domain="local"),
        node("Act", "x", "v", domain="local"),
        node("Add", "u v", "w"),
        node("Add", "w t", "y"),
    ]
    assert result(model(nodes, functions=[function("Act", "y", "x", body)]), [2.0]) == [2.0]


# ---------------------------------------------------------------- opsets, overloads, domains


@pytest.mark.parametrize("opset", [7, 13, 16, 18, 21])
def test_a_function_of_another_opset_than_the_model(opset: int) -> None:
    made = act(leaky(), slope=0.125, opset=opset)
    assert result(made, [-1.0]) == [-0.125]
    assert by_onnxruntime(made, np.float32([-1]))[0].tolist() == [-0.125]


def test_an_operator_means_what_it_means_in_the_functions_opset() -> None:
    """Clip has attributes before opset 11, and operands since."""
    assert result(act(node("Clip", "a", "b", min=-1.0), opset=6), [-3.0]) == [-1.0]
    assert "Unrecognized attribute: min" in refusal(act(node("Clip", "a", "b", min=-1.0), opset=11))


def test_a_function_that_imports_no_opset() -> None:
    made = act(node("Relu", "a", "b", name="r"))
    del made.functions[0].opset_import[:]
    assert refusal(made) == (
        "node 'r' of function local.Act, called by node of output ['y']: no opset_import there "
        "names the domain ai.onnx, so that the version of Relu is unknown\n"
        "hint: add it, for example onnx.helper.make_opsetid('', 18)"
    )


def test_a_model_of_calls_alone_needs_no_opset_of_onnx() -> None:
    made = act(node("Relu", "a", "b"))
    del made.opset_import[0]
    assert result(made, [-1.0]) == [0]


@pytest.mark.parametrize(("overload", "wanted"), [("one", -2.0), ("two", 0.0), ("", 2.0)])
def test_an_overload_is_chosen_by_its_name(overload: str, wanted: float) -> None:
    bodies = {"one": "Identity", "two": "Relu", "": "Abs"}
    functions = [
        function("Act", "a", "b", [node(operator, "a", "b")], overload=name)
        for name, operator in bodies.items()
    ]
    called = node("Act", "x", "y", domain="local", overload=overload)
    made = model([called], functions=functions)
    assert result(made, [-2.0]) == [wanted]
    assert by_onnxruntime(made, np.float32([-2]))[0].tolist() == [wanted]


def test_an_overload_that_is_not_there_is_an_unknown_operator() -> None:
    called = node("Act", "x", "y", domain="local", overload="three", name="call")
    made = model([called], functions=[function("Act", "a", "b", [node("Relu", "a", "b")])])
    assert refusal(made).startswith("node 'call': operator Act of domain local, version 1, is not")


def test_a_domain_with_two_names_is_one() -> None:
    body = [node("Relu", "a", "b", domain="ai.onnx")]
    new = function("Softer", "a", "b", body, domain="ai.onnx")
    made = model([node("Softer", "x", "y")], functions=[new])
    assert result(made, [-1.0, 1.0]) == [0, 1]


def test_a_function_with_the_name_of_an_operator_is_refused() -> None:
    """onnxruntime takes the operator, onnx.inliner the function."""
    shadow = function("Relu", "a", "b", [node("Neg", "a", "b")], domain="")
    assert refusal(model([node("Relu", "x", "y", name="r")], functions=[shadow])) == (
        "node 'r': Relu is an operator of opset 17 and a local function too, and runtimes differ "
        "in which of them they take\nhint: give the function a domain of its own"
    )
    later = function("Gelu", "a", "b", [node("Neg", "a", "b")], domain="")  # there since opset 20
    assert result(model([node("Gelu", "x", "y")], functions=[later]), [-1.0]) == [1]


# ---------------------------------------------------------------- what is not used, and recursion


def test_unused_functions_nodes_and_constants_stop_no_model() -> None:
    strings = helper.make_tensor("words", onnx.TensorProto.STRING, [1], [b"w"])
    nodes = [
        node("Act", "x words", "y left", domain="local"),
        node("Exp", "x", "unused"),
        node("Never", "x", "nor this", domain="com.example"),
    ]
    functions = [
        function("Act", "a s", "b c", [node("Relu", "a", "b"), node("StringNormalizer", "s", "c")]),
        function("Loop", "a", "b", [node("Loop", "a", "b", domain="local")]),
        function("Other", "a", "b", [node("Thing", "a", "b", domain="com.example")]),
        function("Broken", "a", "b", [node("Relu", "nothing", "b")]),
    ]
    made = model(nodes, initializers=[strings], functions=functions)
    assert result(made, [-1.0, 2.0]) == [0, 2]


def test_a_used_function_with_an_operator_out_of_scope_is_refused_by_its_node() -> None:
    inner = function("Inner", "a", "b", [node("Exp", "a", "b", name="e")], opset=18)
    outer = function("Outer", "a", "b", [node("Inner", "a", "b", domain="local", name="i")])
    made = model([node("Outer", "x", "y", domain="local", name="o")], functions=[outer, inner])
    assert refusal(made).startswith(
        "node 'e' of function local.Inner, called by node 'i' of function local.Outer, called by "
        "node 'o': operator Exp of domain ai.onnx, version 18, is not supported\nhint: supported"
    )


def test_recursion_is_refused_with_its_way() -> None:
    first = function("First", "a", "b", [node("Second", "a", "b", domain="local")])
    second = function("Second", "a", "b", [node("First", "a", "b", domain="local")])
    made = model([node("First", "x", "y", domain="local")], functions=[first, second])
    assert refusal(made) == (
        "function local.First calls itself (local.First > local.Second > local.First), which ONNX "
        "forbids"
    )


def test_two_functions_of_one_name_are_refused_where_one_is_called() -> None:
    twice = [function("Act", "a", "b", [node(o, "a", "b")]) for o in ("Relu", "Neg")]
    assert refusal(model([node("Act", "x", "y", domain="local")], functions=twice)) == (
        "the model has several functions local.Act; one that is called must be unique"
    )
    assert result(model([node("Relu", "x", "y")], functions=twice), [-1.0]) == [0]


# ---------------------------------------------------------------- models of functions, drawn

# Operators of float operands and float attributes in which onnxruntime gives the contract's bits.
_PLAIN = {"Add": 2, "Mul": 2, "Sub": 2, "Max": 2, "Min": 2, "Neg": 1, "Abs": 1, "Relu": 1}
_ALPHA = ("LeakyRelu", "ThresholdedRelu")
_NUMBERS = (-1.5, -0.25, 0.125, 0.5, 1.0, 2.0)


@dataclass
class Drawn:
    """A function under construction: what it offers to those that call it."""

    proto: FunctionProto
    operands: int
    needed: int  # how many operands a call has to give
    attributes: list[str]
    results: int


@dataclass
class Plain:
    """The same computation without functions."""

    nodes: list[NodeProto] = field(default_factory=list)
    count: Any = field(default_factory=itertools.count)

    def add(self, operator: str, operands: list[str], **attributes: Any) -> str:
        name = f"v{next(self.count)}"
        self.nodes.append(helper.make_node(operator, operands, [name], **attributes))
        return name


def expand(
    made: Drawn, known: dict[str, Drawn], operands: list[str], given: dict[str, float], out: Plain
) -> list[str]:
    """Write a call out, from the IR's words and not by the importer's code."""
    names = dict(zip(made.proto.input, [*operands, *[""] * made.operands], strict=False))
    attributes = {a.name: a.f for a in made.proto.attribute_proto} | given
    for one in made.proto.node:
        actual = [names[n] if n else "" for n in one.input]
        numbers = {}
        for a in one.attribute:
            if not a.ref_attr_name:
                numbers[a.name] = a.f
            elif a.ref_attr_name in attributes:
                numbers[a.name] = attributes[a.ref_attr_name]
        if one.op_type in known:
            results = expand(known[one.op_type], known, actual, numbers, out)
            names |= zip(one.output, results, strict=False)
        else:
            while actual and not actual[-1]:
                actual.pop()
            names[one.output[0]] = out.add(one.op_type, actual, **numbers)
    return [names[n] for n in made.proto.output]


class Body:
    """Draws the nodes of a function, or of the graph that calls functions."""

    def __init__(self, draw: Any, known: dict[str, Drawn], names: list[str], own: list[str]):
        self.draw, self.known, self.own = draw, known, own
        self.values, self.optional = list(names), list[str]()
        self.nodes: list[NodeProto] = []

    def pick(self, values: Any) -> Any:
        return self.draw(st.sampled_from(list(values)))

    def attribute(self, made: NodeProto, name: str, absent: bool = True) -> None:
        """A number, a reference, or nothing."""
        ways = ["number", *["reference"] * bool(self.own), *["absent"] * absent]
        way = self.pick(ways)
        if way == "number":
            made.attribute.append(helper.make_attribute(name, self.pick(_NUMBERS)))
        elif way == "reference":
            referring(made, **{name: self.pick(self.own)})

    def node(self) -> None:
        kinds = [*_PLAIN, *_ALPHA, "Constant", "Clip", *self.known, *self.known]
        kind = self.pick(kinds)
        outputs = self.known[kind].results if kind in self.known else 1
        names = [f"t{len(self.nodes)}_{k}" for k in range(outputs)]
        if kind in self.known:
            callee = self.known[kind]
            count = self.draw(st.integers(callee.needed, callee.operands))
            operands = [self.pick(self.values) for _ in range(count)]
            for k in range(callee.needed, count):
                operands[k] = self.pick(["", *self.optional])
            made = helper.make_node(kind, operands, names, domain="local")
            for name in callee.attributes:
                self.attribute(made, name)
        elif kind == "Clip":
            bounds = [self.pick(["", *self.optional]) for _ in range(2)]
            made = helper.make_node("Clip", [self.pick(self.values), *bounds], names)
        elif kind == "Constant":
            made = helper.make_node("Constant", [], names)
            self.attribute(made, "value_float", absent=False)
        else:
            operands = [self.pick(self.values) for _ in range(_PLAIN.get(kind, 1))]
            made = helper.make_node(kind, operands, names)
            if kind in _ALPHA:
                self.attribute(made, "alpha")
        self.nodes.append(made)
        self.values += names


def draw_function(draw: Any, name: str, known: dict[str, Drawn]) -> Drawn:
    """One or two operands, up to two scalars that a call may leave out; up to three attributes."""
    needed, optional = draw(st.integers(1, 2)), draw(st.integers(0, 2))
    operands = [f"a{k}" for k in range(needed + optional)]
    defaults = {f"d{k}": draw(st.sampled_from(_NUMBERS)) for k in range(draw(st.integers(0, 2)))}
    plain = ["p"] * draw(st.integers(0, 1))
    # A Constant has to have its number: it refers to what has a default.
    body = Body(draw, known, operands[:needed], [*defaults])
    body.optional = operands[needed:]
    for _ in range(draw(st.integers(1, 4))):
        body.node()
    if plain:
        body.own = plain
        kind = body.pick(_ALPHA)
        made = helper.make_node(kind, [body.pick(body.values)], ["u"])
        body.attribute(made, "alpha")
        body.nodes.append(made)
        body.values.append("u")
    inner = [v for v in body.values if v not in operands]
    results = draw(st.lists(st.sampled_from(inner), min_size=1, max_size=2, unique=True))
    opset = draw(st.sampled_from((13, 14, 16, 17, 18)))
    proto = helper.make_function(
        "local",
        name,
        operands,
        results,
        body.nodes,
        opsets(onnx=opset, local=1),
        plain,
        [helper.make_attribute(n, d) for n, d in defaults.items()],
    )
    return Drawn(proto, len(operands), needed, [*defaults, *plain], len(results))


@st.composite
def models_of_functions(draw: Any) -> tuple[onnx.ModelProto, onnx.ModelProto]:
    """A model with functions, and the same without."""
    known: dict[str, Drawn] = {}
    for k in range(draw(st.integers(1, 4))):
        known[f"F{k}"] = draw_function(draw, f"F{k}", known)
    body = Body(draw, known, ["x", "z"], [])
    body.optional = ["low"]
    for _ in range(draw(st.integers(1, 4))):
        body.node()
    last = body.nodes[-1].output[0]
    whole = Drawn(
        helper.make_function(
            "local", "Main", ["x", "z", "low"], [last], body.nodes, opsets(onnx=17)
        ),
        3,
        3,
        [],
        1,
    )
    plain = Plain()
    (name,) = expand(whole, known, ["x", "z", "low"], {}, plain)
    inputs, low = [value("x"), value("z")], [constant("low", np.float32(-0.5))]
    outputs = [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, None)]
    functions = [d.proto for d in known.values()]
    with_functions = model(
        [*body.nodes, node("Identity", last, "y")], inputs, outputs, low, functions
    )
    without = model([*plain.nodes, node("Identity", name, "y")], inputs, outputs, low)
    return with_functions, without


@settings(
    max_examples=200,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)
@given(models=models_of_functions())
def test_functions_change_no_bit(models: tuple[onnx.ModelProto, onnx.ModelProto]) -> None:
    with_functions, without = models
    x, z = np.float32([-3, -1.25, -0.5, 0.75, 2]), np.float32([0.5, -2, 1.5, -0.25, 3])
    (ours,) = reference.evaluate(import_model(with_functions), [x, z])
    (plain,) = reference.evaluate(import_model(without), [x, z])
    assert_same_bits(ours, plain, "with functions")
    (theirs,) = by_onnxruntime(with_functions, x, z)
    assert_same_bits(ours, theirs, "onnxruntime")
    written = without_functions(with_functions)
    assert not written.functions and not {n.domain for n in written.graph.node} - {""}
    (inlined,) = reference.evaluate(import_model(written), [x, z])
    assert_same_bits(inlined, ours, "written out")
    (theirs,) = by_onnxruntime(written, x, z)
    assert_same_bits(theirs, ours, "written out, in onnxruntime")


# ---------------------------------------------------------------- calls, written out as nodes


def test_names_of_calls_that_are_written_out_are_apart() -> None:
    body = [node("Neg", "y", "t"), node("Add", "t y", "x")]
    nodes = [
        node("Relu", "x", "t"),
        node("Act", "t", "u", domain="local"),
        node("Act", "x", "v", domain="local"),
        node("Add", "u v", "w"),
        node("Add", "w t", "y"),
    ]
    written = without_functions(model(nodes, functions=[function("Act", "y", "x", body)]))
    assert [(n.op_type, [*n.input], [*n.output]) for n in written.graph.node] == [
        ("Relu", ["x"], ["t"]),
        ("Neg", ["t"], ["t_1"]),
        ("Add", ["t_1", "t"], ["u"]),
        ("Neg", ["x"], ["t_2"]),
        ("Add", ["t_2", "x"], ["v"]),
        ("Add", ["u", "v"], ["w"]),
        ("Add", ["w", "t"], ["y"]),
    ]
    assert result(written, [2.0]) == [2.0]


def test_an_operand_that_a_function_hands_on_is_written_out() -> None:
    swap = function("Swap", "a b", "b a", [])
    nodes = [node("Swap", "x z", "p q", domain="local"), node("Sub", "p q", "y")]
    made = without_functions(model(nodes, [value("x"), value("z")], functions=[swap]))
    assert result(made, [1.0], [3.0]) == [2.0]


def test_what_a_call_leaves_out_is_written_out_as_absent() -> None:
    written = without_functions(clip("x - high"))
    assert [[*n.input] for n in written.graph.node] == [["x", "", "high"]]


@pytest.mark.parametrize(("own", "inner", "opset"), [(17, 18, 18), (13, 16, 16), (26, 9, 26)])
def test_what_is_written_out_has_the_newest_opset(own: int, inner: int, opset: int) -> None:
    made = act(leaky(), slope=0.125, opset=inner)
    made.opset_import[0].version = own
    written = without_functions(made)
    assert [(o.domain, o.version) for o in written.opset_import] == [("", opset)]
    assert result(written, [-1.0]) == [-0.125]


def test_functions_of_versions_that_no_opset_has_cannot_be_written_out() -> None:
    made = act(node("Clip", "a", "b", min=-1.0), opset=6)
    with pytest.raises(UnsupportedError) as caught:
        without_functions(made)
    assert str(caught.value) == (
        "node of output ['b'] of function local.Act, called by node of output ['y']: Clip of "
        "opset 6 is written otherwise in opset 17, which other nodes have"
    )


@pytest.mark.parametrize(("opset", "reads"), [g for g in GROUPS if g[0] < 23])
def test_a_newer_opset_means_the_same_but_where_it_is_said(opset: int, reads: str) -> None:
    newest = onnx.defs.onnx_opset_version()
    for question in questions(opset, reads):
        if opset < inline._MEANT_OTHERWISE_BEFORE.get(question.operator, 0):
            continue
        old = reference.evaluate(import_model(question.model), question.arrays)
        question.model.opset_import[0].version = newest
        new = reference.evaluate(import_model(question.model), question.arrays)
        assert_same_bits(old[0], new[0], question.operator)


@pytest.mark.parametrize("operator", sorted(inline._MEANT_OTHERWISE_BEFORE))
def test_every_row_of_what_was_written_otherwise_shows(operator: str) -> None:
    before = inline._MEANT_OTHERWISE_BEFORE[operator] - 1
    groups = [group for group in GROUPS if group[0] <= before]
    asked = [q for group in groups for q in questions(*group)] + [*_more(operator, "float32")]
    assert any(means_otherwise(q, before + 1) for q in asked if q.operator == operator)


def means_otherwise(question: Question, opset: int) -> bool:
    old = reference.evaluate(import_model(question.model), question.arrays)[0]
    question.model.opset_import[0].version = opset
    try:
        new = reference.evaluate(import_model(question.model), question.arrays)[0]
    except (ModelError, ValueError):
        return True
    return old.shape != new.shape or bool(differing(old, new).any())
