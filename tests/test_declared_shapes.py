"""Shapes that cannot work are refused at import; a graph that builds runs on what it declares.

The property is tried over random graphs whose dimensions are static, named and free: every choice
of extents is tried, with what ONNX says of shapes written out here, without the importer's code.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import pytest
from cases import TARGETS, fresh
from hypothesis import HealthCheck, given, note, settings
from hypothesis import strategies as st
from short_models import constant, model, node, refusal, value

from relu_ops import graphs
from relu_ops.compiler.frontend import import_model, limits
from relu_ops.contract import ir
from relu_ops.errors import ArgumentError, ModelError

INT8 = onnx.TensorProto.INT8

# ---------------------------------------------------------------- messages

ALIGNED = "hint: shapes are aligned at their last dimension; there, extents must be equal, or 1"


def prelu(x: Any, slope: Any, initializer: bool = False, opset: int = 17) -> onnx.ModelProto:
    nodes = [node("PRelu", "x s", "y", name="act")]
    outputs = [value("y", None)]
    if initializer:
        weights = [constant("s", np.ones(slope, np.float32))]
        return model(nodes, [value("x", x)], outputs, weights, opset=opset)
    return model(nodes, [value("x", x), value("s", slope)], outputs, opset=opset)


@pytest.mark.parametrize("initializer", [False, True])
@pytest.mark.parametrize("batch", [1, "N", None])
def test_a_slope_of_length_c_on_nchw_says_how_to_reshape_it(batch: Any, initializer: bool) -> None:
    shown = "?" if batch is None else batch
    assert refusal(prelu([batch, 64, 56, 56], [64], initializer)) == (
        f"node 'act': slope 's' of shape (64,) must broadcast into 'x' of shape ({shown}, 64, 56, "
        "56)\nhint: to lay it along axis 1, reshape it to (64, 1, 1): shapes are aligned at their "
        "last dimension"
    )
    assert import_model(prelu([batch, 64, 56, 56], [64, 1, 1], initializer)).inputs


def test_a_slope_of_length_c_is_right_at_opset_six() -> None:
    assert import_model(prelu([1, 64, 56, 56], [64], opset=6)).inputs


def test_operands_that_cannot_broadcast_are_refused_by_node_names_and_shapes() -> None:
    add = node("Add", "a b", "y", name="sum")
    assert refusal(model([add], [value("a", [2]), value("b", [3])], [value("y", None)])) == (
        f"node 'sum': 'a' of shape (2,) and 'b' of shape (3,) do not broadcast together\n{ALIGNED}"
    )
    bias = model([add], [value("a", [1, 8, 4, 4]), value("b", [8])], [value("y", None)])
    assert refusal(bias).endswith(
        "\nhint: to lay it along axis 1, reshape it to (8, 1, 1): shapes are aligned at their last "
        "dimension"
    )


def test_a_bound_that_is_no_scalar_is_refused() -> None:
    clip = node("Clip", "x low", "y", name="c")
    low = constant("low", np.zeros(3, np.float32))
    assert refusal(model([clip], initializers=[low])) == (
        "node 'c': min 'low' of shape (3,) must be a scalar\nhint: give it the shape ()"
    )


def test_named_dimensions_that_cannot_have_one_extent_are_refused() -> None:
    """N would have to be 3 for the one node and 4 for the other."""
    nodes = [node("PRelu", "x three", "a", name="p"), node("PRelu", "a four", "y", name="q")]
    slopes = [constant("three", np.ones(3, np.float32)), constant("four", np.ones(4, np.float32))]
    assert refusal(model(nodes, initializers=slopes)) == (
        "node 'q': slope 'four' of shape (4,) must broadcast into 'a' of shape (N,), with what the "
        f"nodes before it demand of these dimensions\n{ALIGNED}"
    )


def test_what_no_output_needs_may_be_of_any_shape() -> None:
    nodes = [node("Relu", "x", "y"), node("Add", "x two", "dead")]
    made = model(nodes, [value("x", [3])], [value("y", [3])], [constant("two", np.ones(2, "f"))])
    assert import_model(made).inputs


@pytest.mark.parametrize("what", ["output", "value"])
def test_a_stale_shape_is_refused_by_its_name(what: str) -> None:
    nodes = [node("Relu", "x", "h"), node("Neg", "h", "y")]
    stale = value("h" if what == "value" else "y", [5, 8])
    made = model(nodes, [value("x", ["N", 3])], [value("y", None) if what == "value" else stale])
    if what == "value":
        made.graph.value_info.append(stale)
    assert refusal(made) == (
        f"{what} {stale.name!r} is declared (5, 8) and computed as (N, 3)\nhint: clear what is "
        "stale (info.type.tensor_type.ClearField('shape')), and infer it anew with "
        "onnx.shape_inference.infer_shapes"
    )


def test_a_name_where_a_number_is_computed_is_not_stale() -> None:
    made = model([node("Relu", "x", "y")], [value("x", [2, 3])], [value("y", ["batch", None])])
    assert import_model(made).outputs[0].shape == (2, 3)


def test_an_output_beyond_any_memory_is_refused() -> None:
    add = node("Add", "a b", "y")
    inputs = [value("a", [2**31, 1]), value("b", [1, 2**31])]
    assert refusal(model([add], inputs, [value("y", None)])) == (
        f"output 'y' has the shape ({2**31}, {2**31}), larger than any memory"
    )


def test_a_choice_that_fails_is_taken_back() -> None:
    """A or B is 3, and A or C is 4: A = 3 leads nowhere, B = 3 and C = 4 work."""
    nodes = [
        node("Add", "a b", "s"),
        node("PRelu", "s three", "p"),
        node("Add", "a c", "t"),
        node("PRelu", "t four", "q"),
    ]
    slopes = [constant("three", np.ones(3, "f")), constant("four", np.ones(4, "f"))]
    inputs = [value(name, [name.upper()]) for name in "abc"]
    graph = import_model(model(nodes, inputs, [value("p", None), value("q", None)], slopes))
    assert runs(graph, [(1,), (3,), (4,)]) == [(3,), (4,)]


def test_a_number_of_blocks_that_another_node_decides_is_found() -> None:
    """D is 2 * B; D or C is 4; D = 2, the least, does not broadcast with C = 4."""
    nodes = [
        node("DequantizeLinear", "x s", "d", axis=0, block_size=2),
        node("Add", "d c", "t"),
        node("PRelu", "t four", "y"),
    ]
    inputs = [value("x", ["D"], INT8), value("s", ["B"]), value("c", ["C"])]
    four = [constant("four", np.ones(4, "f"))]
    graph = import_model(model(nodes, inputs, [value("y", None)], four, opset=21))
    assert runs(graph, [(4,), (2,), (1,)]) == [(4,)]


# ---------------------------------------------------------------- dimensions that are unknown


@pytest.mark.parametrize("number", [-1, -3, -(2**63)])
def test_a_negative_dimension_is_free(number: int) -> None:
    """As Paddle (-1) and CNTK (-3) write it; onnxruntime takes it so."""
    shape = [number, 3]
    made = model([node("Relu", "x", "y")], [value("x", shape)], [value("y", shape)])
    assert import_model(made).inputs[0].shape == (None, 3)


@pytest.mark.parametrize("name", ["?", "None", "unknown", "*", "-1", "dynamic", " Any "])
def test_a_name_for_unknown_is_no_extent_that_two_dimensions_share(name: str) -> None:
    shape = [name, name]
    made = model([node("Relu", "x", "y")], [value("x", shape)], [value("y", shape)])
    assert import_model(made).inputs[0].shape == (None, None)


# ---------------------------------------------------------------- scales


def dequantize(x: Any, scale: Any, zero: Any = (), opset: int = 21, **attributes: int) -> Any:
    made = node("DequantizeLinear", "x s z", "y", name="d", **attributes)
    inputs = [value("x", x, INT8), value("s", scale), value("z", zero, INT8)]
    return model([made], inputs, [value("y", None)], opset=opset)


@pytest.mark.parametrize("scale", [[2, 3], ["N", 3], [1, "N"]])
def test_a_scale_of_rank_two_without_block_size_is_refused(scale: Any) -> None:
    shown = ", ".join(map(str, scale))
    assert refusal(dequantize([2, 3], scale)) == (
        f"node 'd': scale 's' has the shape ({shown}); it must be a scalar, or a vector along "
        "axis, which scale and zero_point both are then\n"
        "hint: for scales in blocks, give the node a block_size (opset 21)"
    )


def test_a_zero_point_of_another_rank_than_scale_is_refused() -> None:
    message = refusal(dequantize([2, 3], [3], [1, 3], axis=1))
    assert message.startswith("node 'd': zero_point 'z' has the shape (1, 3); it must be a scalar")


def test_a_vector_of_scales_before_there_were_axes_is_refused() -> None:
    message = refusal(dequantize([2, 3], [3], opset=10))
    assert message.startswith("node 'd': scale 's' of shape (3,) must be a scalar")


def test_a_scale_of_unknown_rank_is_one_element_at_the_call() -> None:
    """A vector would lie along axis 1, and not where broadcasting lays it."""
    graph = import_model(dequantize(["N", 3, 4], None))
    assert runs(graph, [(2, 3, 4), (), ()]) and not runs(graph, [(2, 3, 4), (4,), ()])


def test_a_blocked_scale_of_other_extents_than_x_is_refused() -> None:
    assert refusal(dequantize([4, 6], [1, 3], [1, 3], axis=1, block_size=2)) == (
        "node 'd': scale 's': its shape (1, 3) must be that of x, (4, 6), but for axis 1"
    )


def test_a_blocked_scale_of_other_named_extents_than_x_is_refused_at_the_call() -> None:
    graph = import_model(dequantize(["N", 6], ["M", 3], ["M", 3], axis=1, block_size=2))
    assert runs(graph, [(2, 6), (2, 3), (2, 3)]) == [(2, 6)]
    assert runs(graph, [(2, 6), (1, 3), (1, 3)]) is None


def test_a_blocked_scale_that_broadcasting_makes_is_refused() -> None:
    """Each operand is repeated as it is, and (2, 1 * 2) does not broadcast with (2, 3 * 2)."""
    nodes = [
        node("Mul", "a b", "s"),
        node("DequantizeLinear", "x s", "y", name="d", axis=1, block_size=2),
    ]
    inputs = [value("x", [2, 6], INT8), value("a", [2, 3]), value("b", [2, 1])]
    assert refusal(model(nodes, inputs, [value("y", None)], opset=21)) == (
        "node 'd': scale 's' in blocks is computed from operands that broadcast along axis 1\n"
        "hint: give the operands one extent along that axis, by one name or number"
    )
    half = [value("x", [2, 6], INT8), value("a", [2, 3])]
    made = model(nodes, half, [value("y", None)], [constant("b", np.float32(0.5))], opset=21)
    assert runs(import_model(made), [(2, 6), (2, 3)]) == [(2, 6)]


# ---------------------------------------------------------------- bounds


def test_bounds_are_refused_with_their_numbers() -> None:
    outputs = [value(f"y{k}", None) for k in range(513)]
    nodes = [node("Relu", "x", f"y{k}") for k in range(513)]
    assert refusal(model(nodes, outputs=outputs)) == (
        "the model has 513 outputs; it must have at most 512"
    )
    assert len(import_model(model(nodes[:512], outputs=outputs[:512])).outputs) == limits.OUTPUTS
    nine = constant("w", np.ones([1] * 9, np.float32))
    assert refusal(
        model([node("Add", "x w", "y")], outputs=[value("y", None)], initializers=[nine])
    ) == ("tensor 'w' has 9 dimensions; it must have at most 8")
    assert refusal(model([node("Relu", "x", "y")], [value("x", [1] * 9)])) == (
        "input 'x' has 9 dimensions; it must have at most 8"
    )
    long = "n" * (limits.NAME_BYTES + 1)
    assert refusal(model([node("Relu", long, "y")], [value(long)])) == (
        f"a name in the model has {limits.NAME_BYTES + 1} bytes; it must have at most 65535"
    )


def test_initializers_that_are_inputs_too_do_not_count_as_inputs() -> None:
    """Before IR version 4 every initializer had to be one."""
    weights = [constant(f"w{k}", np.float32([k])) for k in range(600)]
    inputs = [value("x"), *(value(w.name, [1]) for w in weights)]
    nodes = [node("Max", " ".join(["x", *(w.name for w in weights)]), "y")]
    assert len(import_model(model(nodes, inputs, None, weights, ir_version=3)).inputs) == 1


# ---------------------------------------------------------------- the property


@dataclass
class Step:
    """A node, as the shapes see it."""

    operator: str
    operands: list[str]
    output: str
    attributes: dict[str, int] = field(default_factory=dict)


@dataclass
class Case:
    """A graph: declared inputs, constants, nodes."""

    inputs: dict[str, tuple[Any, ...] | None] = field(default_factory=dict)
    constants: dict[str, tuple[int, ...]] = field(default_factory=dict)
    integers: set[str] = field(default_factory=set)
    steps: list[Step] = field(default_factory=list)
    outputs: list[str] = field(default_factory=list)

    def model(self) -> onnx.ModelProto:
        nodes = [
            onnx.helper.make_node(s.operator, s.operands, [s.output], s.output, **s.attributes)
            for s in self.steps
        ]
        return model(
            nodes,
            [value(n, s, INT8 if n in self.integers else 1) for n, s in self.inputs.items()],
            [value(name, None) for name in self.outputs],
            [constant(name, np.ones(shape, np.float32)) for name, shape in self.constants.items()],
            opset=21,
        )

    def live(self) -> list[Step]:
        needed, found = set(self.outputs), []
        for step in reversed(self.steps):
            if step.output in needed:
                needed |= set(step.operands)
                found.append(step)
        return found[::-1]

    def __repr__(self) -> str:
        lines = [f"{s.output} = {s.operator}({s.operands}) {s.attributes}" for s in self.steps]
        return "\n".join([f"{self.inputs} {self.constants} -> {self.outputs}", *lines])


Shape = tuple[int, ...]


def fits(source: Shape, into: Shape) -> bool:
    while len(source) > len(into) and source[0] == 1:
        source = source[1:]
    return np.broadcast_shapes(source, into) == into


def shape_of(step: Step, operands: list[Shape]) -> Shape:
    """The shape of a node's result, by the words of ONNX's documentation; ValueError for none."""
    x = operands[0]
    if step.operator in ("Add", "Max", "Where"):
        return np.broadcast_shapes(*operands)
    if step.operator == "PRelu":
        wanted = fits(operands[1], x)
    elif step.operator == "Clip":
        wanted = all(int(np.prod(bound)) == 1 for bound in operands[1:])
    elif "block_size" in step.attributes:
        axis, block = step.attributes["axis"], step.attributes["block_size"]
        blocks = list(operands[1])
        blocks[axis] *= block
        wanted = tuple(blocks) == x
    else:
        (count,) = operands[1] or (1,)
        wanted = count in (1, x[step.attributes["axis"]] if x else 1)
    if not wanted:
        raise ValueError(step.operator)
    return x


def outcome(case: Case, shapes: dict[str, Shape]) -> list[Shape] | None:
    """The shapes of the outputs, or None where some node cannot take its operands."""
    known = {**shapes, **case.constants}
    try:
        for step in case.live():
            known[step.output] = shape_of(step, [known[name] for name in step.operands])
    except ValueError:
        return None
    return [known[name] for name in case.outputs]


_EXTENTS = (1, 2, 3, 4, 6, 12)
_SHAPES = [s for rank in range(4) for s in itertools.product((1, 2, 3, 6), repeat=rank)]


def assignments(case: Case) -> Iterator[dict[str, Shape]]:
    """Every choice of extents for what is named, free or of unknown rank."""
    free = [
        (n, k) if d is None else d
        for n, s in case.inputs.items()
        for k, d in enumerate(s or ())
        if not isinstance(d, int)
    ]
    free, unranked = list(dict.fromkeys(free)), [n for n, s in case.inputs.items() if s is None]
    for extents in itertools.product(_EXTENTS, repeat=len(free)):
        chosen = dict(zip(free, extents, strict=True))
        for ranked in itertools.product(_SHAPES, repeat=len(unranked)):
            shapes = dict(zip(unranked, ranked, strict=True))
            for name, dims in case.inputs.items():
                if dims is not None:
                    shapes[name] = tuple(
                        d if isinstance(d, int) else chosen[(name, k) if d is None else d]
                        for k, d in enumerate(dims)
                    )
            yield {name: shapes[name] for name in case.inputs}


def runs(graph: ir.Graph, shapes: list[Shape]) -> list[Shape] | None:
    """The shapes of the outputs as the runtime decides them, or None where it refuses the call."""
    try:
        for requirement in graph.requirements:
            source = ir.broadcast_terms(requirement.terms, shapes)
            if not ir.fits_into(source, ir.broadcast_terms(requirement.into, shapes)):
                return None
        return [ir.broadcast_terms(graph.values[o.value].terms, shapes) for o in graph.outputs]
    except ValueError:
        return None


class Drawing:
    """Draws one case, of so few unknown extents that all can be tried."""

    def __init__(self, draw: Any, static: bool) -> None:
        self.draw, self.case = draw, Case()
        self.left = 0 if static else 4
        self.ranks: dict[str, int | None] = {}
        self.shapes: dict[str, tuple[Any, ...] | None] = {}

    def pick(self, values: Any) -> Any:
        return self.draw(st.sampled_from(list(values)))

    def dim(self) -> Any:
        if self.left and self.draw(st.booleans()):
            self.left -= 1
            return self.pick(("N", "M", None))
        return self.pick((1, 1, 2, 3, 6))

    def leaf(self, name: str) -> None:
        kind = self.pick(("input", "input", "integer", "constant"))
        if kind == "constant":
            shape: Any = tuple(self.pick((1, 2, 3)) for _ in range(self.draw(st.integers(0, 2))))
            self.case.constants[name] = shape
        elif self.left >= 3 and kind == "input" and self.draw(st.integers(0, 3)) == 0:
            self.left -= 3
            shape = self.case.inputs[name] = None
        else:
            shape = tuple(self.dim() for _ in range(self.draw(st.integers(0, 3))))
            self.case.inputs[name] = shape
            if kind == "integer":
                self.case.integers.add(name)
        self.shapes[name] = shape

    def step(self) -> None:
        floats = [name for name in self.shapes if name not in self.case.integers]
        kinds = ["Add", "Max", "PRelu", "PRelu", "Clip"]
        ranked = [n for n in self.case.integers if self.shapes[n]]
        kinds += ["DequantizeLinear"] * 2 * bool(ranked)
        operator, attributes = self.pick(kinds), {}
        count = {"Max": 3, "Clip": self.draw(st.integers(2, 3))}.get(operator, 2)
        operands = [self.pick(floats) for _ in range(count)]
        if operator == "DequantizeLinear":
            x = self.pick(ranked)
            rank = len(self.shapes[x] or ())
            attributes["axis"] = self.draw(st.integers(0, rank - 1))
            scale = operands[1]
            own = self.shapes[scale]
            if own is not None and len(own) == rank and self.draw(st.booleans()):
                attributes["block_size"] = 2
            elif own is None or len(own) > 1:
                return
            operands = [x, scale]
            if rank == 1:
                attributes["axis"] = 0
        output = f"t{len(self.case.steps)}"
        self.case.steps.append(Step(operator, operands, output, attributes))
        first = self.shapes[operands[0]]
        # Whether a result's rank is known is all that matters of its shape here.
        known = [self.shapes[o] for o in operands]
        if operator in ("Add", "Max"):
            ranks = [None if s is None else len(s) for s in known]
            first = None if None in ranks else ("?",) * max(r for r in ranks if r is not None)
        self.shapes[output] = first


@st.composite
def cases(draw: Any, static: bool = False) -> Case:
    drawing = Drawing(draw, static)
    for k in range(draw(st.integers(2, 4))):
        drawing.leaf(f"x{k}")
    if not any(n not in drawing.case.integers for n in drawing.shapes):
        drawing.case.inputs["f"] = drawing.shapes["f"] = (1,)
    for _ in range(draw(st.integers(1, 4))):
        drawing.step()
    case = drawing.case
    outputs = [s.output for s in case.steps] or [n for n in drawing.shapes][:1]
    if not case.steps:
        case.steps.append(Step("Max", [next(iter(case.constants or case.inputs))] * 3, "t"))
        case.integers.clear()
        outputs = ["t"]
    case.outputs = list(dict.fromkeys([outputs[-1], drawing.pick(outputs)]))
    return case


_COMMON: dict[str, Any] = {
    "deadline": None,
    "derandomize": True,
    "database": None,
    "suppress_health_check": list(HealthCheck),
}


def check_case(case: Case) -> bool:
    """A graph is refused exactly where no extents work, and else runs exactly where they do."""
    note(repr(case))
    every = list(assignments(case))
    wanted = [outcome(case, shapes) for shapes in every]
    try:
        graph = import_model(case.model())
    except ModelError as error:
        if "in blocks is computed from operands that broadcast" in str(error):
            return False
        working = [s for s, w in zip(every, wanted, strict=True) if w is not None]
        assert not working, f"refused, though {working[0]} works: {error}"
        assert "node 't" in str(error), error
        return False
    assert any(w is not None for w in wanted), "built, though nothing works"
    for shapes, shape in zip(every, wanted, strict=True):
        found = runs(graph, list(shapes.values()))
        assert found == shape, f"{shapes}: {found}, not {shape}"
    return True


@settings(max_examples=400, **_COMMON)
@given(case=cases())
def test_a_graph_builds_exactly_where_some_extents_work(case: Case) -> None:
    check_case(case)


@settings(max_examples=400, **_COMMON)
@given(case=cases(static=True))
def test_a_graph_of_static_shapes_builds_exactly_where_it_works(case: Case) -> None:
    check_case(case)


@settings(max_examples=20, **_COMMON)
@given(case=cases())
def test_a_call_on_declared_shapes_never_fails(case: Case) -> None:
    """Compiled: what the runtime takes is what the importer decided."""
    try:
        import_model(case.model())
    except ModelError:
        return
    operator = fresh(case.model(), TARGETS[0])
    every = list(assignments(case))
    for shapes in every[:: max(1, len(every) // 12)]:
        arrays = [
            np.ones(s, np.int8 if n in case.integers else np.float32) for n, s in shapes.items()
        ]
        wanted = outcome(case, shapes)
        if wanted is None:
            with pytest.raises(ArgumentError):
                operator(*arrays)
        else:
            results = operator(*arrays)
            results = results if isinstance(results, tuple) else (results,)
            assert [r.shape for r in results] == wanted


def test_both_verdicts_are_drawn() -> None:
    """Neither are all graphs refused, nor none."""
    seen = []

    @settings(max_examples=150, **_COMMON)
    @given(case=cases())
    def collect(case: Case) -> None:
        seen.append(check_case(case))

    collect()
    assert 0.2 < np.mean(seen) < 0.9


def test_many_nodes_are_decided_in_time() -> None:
    """The worst that the bounds allow comes to an answer: here, that nothing is wrong."""
    inputs = [value(f"x{k}", [f"d{k}", None]) for k in range(limits.INPUTS)]
    slopes = [constant(f"s{k}", np.ones(k + 2, np.float32)) for k in range(limits.INPUTS)]
    nodes = [node("PRelu", f"x{k} s{k}", f"p{k}") for k in range(limits.INPUTS)]
    nodes += [node("Identity", f"p{k}", f"y{k}") for k in range(limits.INPUTS)]
    outputs = [value(f"y{k}", None) for k in range(limits.INPUTS)]
    assert len(import_model(model(nodes, inputs, outputs, slopes)).outputs) == limits.OUTPUTS


def test_the_shipped_models_build() -> None:
    for name, make in graphs.MODELS.items():
        assert import_model(make()).outputs, name
