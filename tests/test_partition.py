"""Whole networks, partitioned: what is taken, what is left, and that every output stays.

`partition` compares outputs itself; here they are compared once more, in onnxruntime with and
without the library of operators and in onnx.reference, and the checker is broken on purpose.
"""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import children
import numpy as np
import onnx
import pytest
from cases import assert_same_bits
from onnx import TensorProto, helper, numpy_helper, parser
from onnx.reference import ReferenceEvaluator

import relu_ops
from relu_ops import cli, partitioning
from relu_ops.bench.networks import NETWORKS
from relu_ops.bundle import store as bundles
from relu_ops.errors import ArgumentError, ArgumentTypeError, BuildError, ModelError
from relu_ops.interop import onnx_reference
from relu_ops.interop import onnxruntime as door
from relu_ops.partitioning import checking, rules

onnxruntime = pytest.importorskip("onnxruntime")


@pytest.fixture
def greedy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take every group, however small."""
    monkeypatch.setattr(rules, "decide", lambda group, dims: (True, "a test wants it"))


def run(session: Any, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
    return session.run(None, feeds)


def stock(model: onnx.ModelProto | str) -> Any:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    content = model if isinstance(model, str) else model.SerializeToString()
    return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])


def check_everywhere(
    model: onnx.ModelProto, folder: Path, feeds: dict[str, np.ndarray], reference: bool = True
) -> None:
    """The model's bits, from its folder in onnxruntime and in onnx.reference, by both ways."""
    want = run(stock(model), feeds)
    path = str(folder / door.MODEL)
    for session in (door.session(folder), stock(path)):
        for y, z in zip(run(session, feeds), want, strict=True):
            assert_same_bits(np.asarray(y), np.asarray(z), "outputs")
    partitioned = onnx.load(path)
    onnx.checker.check_model(partitioned, full_check=True)
    if reference:
        plain = ReferenceEvaluator(model).run(None, feeds)
        operators = onnx_reference.operators(folder / door.BUNDLE)
        for evaluator in (
            ReferenceEvaluator(partitioned),
            ReferenceEvaluator(partitioned, new_ops=operators),
        ):
            for y, z in zip(evaluator.run(None, feeds), plain, strict=True):
                np.testing.assert_allclose(y, z, rtol=1e-5, atol=1e-6)


def operators_of(folder: Path) -> list[str]:
    return [node.op_type for node in onnx.load(folder / door.MODEL).graph.node]


def random(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


CHAIN = parser.parse_model(
    """<ir_version: 8, opset_import: ["": 17]>
chain (float[batch, 64] x, float[64] scale, float[64] bias) => (float[batch, 32] z) {
a = Mul(x, scale)
b = Add(a, bias)
y = LeakyRelu <alpha = 0.1> (b)
z = MatMul(y, w) }"""
)
CHAIN.graph.initializer.append(numpy_helper.from_array(random(64, 32), "w"))


def test_a_chain_becomes_one_node(tmp_path: Path) -> None:
    report = relu_ops.partition(CHAIN, tmp_path / "p", dims={"batch": 512})
    feeds = {"x": random(7, 64), "scale": random(64, seed=1), "bias": random(64, seed=2)}
    check_everywhere(CHAIN, tmp_path / "p", feeds)
    (group,) = report.groups
    assert (group.nodes, group.taken) == (["Mul", "Add", "LeakyRelu"], True)
    assert group.operator == "mul_add_leakyrelu"
    assert report.digest is not None
    kind = door.node_type("mul_add_leakyrelu", report.digest)
    assert operators_of(tmp_path / "p") == [kind, "MatMul"]
    assert report.checked == "the same bits as onnxruntime's" and not report.causes
    assert bundles.read(tmp_path / "p" / door.BUNDLE).digest == report.digest


def test_small_groups_are_left(tmp_path: Path) -> None:
    report = relu_ops.partition(CHAIN, tmp_path / "p", dims={"batch": 1})
    (group,) = report.groups
    assert not group.taken and group.why == "about 64 elements are too few to gain"
    assert sorted(p.name for p in (tmp_path / "p").iterdir()) == [door.MODEL, "report.json"]
    assert report.digest is None and operators_of(tmp_path / "p")[-1] == "MatMul"
    assert door.session(tmp_path / "p").run(
        None, {"x": random(1, 64), "scale": random(64), "bias": random(64)}
    )


def clip_of(*shape: int | str) -> onnx.ModelProto:
    """A Clip that stands alone: after a Softmax, into which nothing is fused."""
    text = ", ".join(map(str, shape))
    return parser.parse_model(
        f"""<ir_version: 8, opset_import: ["": 17]>
g (float[{text}] x) => (float[{text}] y) {{
low = Constant <value_float = 0.1> ()
a = Softmax <axis = 1> (x)
y = Clip(a, low) }}"""
    )


@pytest.mark.parametrize(
    ("shape", "dims", "taken", "why"),
    [
        ((1, 64, 32, 32), {}, True, "onnxruntime's kernel takes twice as long"),
        ((1, 64, 8, 8), {}, False, "about 4096 elements are too few to gain"),
        (("b", 64, "h", "w"), {}, False, "its size is not known: give inputs or extents, or"),
        (("b", 64, "h", "w"), {"h": 32, "w": 32}, True, "onnxruntime's kernel takes twice"),
    ],
)
def test_rules(
    shape: tuple[int | str, ...], dims: dict[str, int], taken: bool, why: str, tmp_path: Path
) -> None:
    (group,) = relu_ops.partition(clip_of(*shape), tmp_path / "p", dims=dims).groups
    assert group.taken == taken and group.why.startswith(why)


@pytest.mark.parametrize("name", NETWORKS)
def test_networks(name: str, tmp_path: Path, greedy: None) -> None:
    """What PRelu networks hold is taken; what onnxruntime fuses is not even asked."""
    model = NETWORKS[name](size=65 if "DeepLab" in name else 64, width=0.125)
    report = relu_ops.partition(model, tmp_path / "p")
    taken = [" ".join(group.nodes) for group in report.taken]
    if "PRelu" in name:
        wanted = sum(node.op_type == "PRelu" for node in model.graph.node)
        assert taken.count("PRelu") == wanted > 0
    assert not {"Relu", "LeakyRelu"} & set(taken)
    if report.taken:
        feeds = {
            "x": random(*(d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim))
        }
        check_everywhere(model, tmp_path / "p", feeds, reference=False)


def test_layers_with_other_weights_share_an_operator(tmp_path: Path) -> None:
    model = NETWORKS["IR-18, PRelu"](size=32, width=0.125)
    report = relu_ops.partition(model, tmp_path / "p")
    assert len(report.taken) > 3
    assert list(bundles.read(tmp_path / "p" / door.BUNDLE).handle.operators) == ["prelu"]


# ---------------------------------------------------------------------------------------------
# Groups


def test_what_comes_back_is_not_one_group(tmp_path: Path, greedy: None) -> None:
    """From a by way of a matrix product to b: a and b cannot be one node."""
    model = parser.parse_model(
        """<ir_version: 8, opset_import: ["": 17]>
g (float[n, 8] x, float[8, 8] w) => (float[n, 8] y) {
a = Abs(x)
c = Neg(a)
t = MatMul(c, w)
b = Sub(a, t)
d = Mul(c, b)
y = Add(d, x) }"""
    )
    report = relu_ops.partition(model, tmp_path / "p")
    assert [group.nodes for group in report.taken] == [["Abs", "Neg"], ["Sub", "Mul", "Add"]]
    check_everywhere(model, tmp_path / "p", {"x": random(5, 8), "w": random(8, 8, seed=1)})


def test_a_value_for_a_channel_is_not_computed_for_each_element(
    tmp_path: Path, greedy: None
) -> None:
    model = parser.parse_model(
        """<ir_version: 8, opset_import: ["": 17]>
g (float[n, 8] x, float[8] s) => (float[n, 8] y) {
half = Constant <value_float = 0.5> ()
a = Div(s, half)
b = Abs(a)
c = Mul(x, b)
y = Neg(c) }"""
    )
    report = relu_ops.partition(model, tmp_path / "p")
    assert [group.nodes for group in report.taken] == [["Div", "Abs"], ["Mul", "Neg"]]
    check_everywhere(model, tmp_path / "p", {"x": random(5, 8), "s": random(8, seed=1)})


def test_a_value_that_others_use_stays(tmp_path: Path, greedy: None) -> None:
    """An inner value that is the model's output, or goes elsewhere, is an output of the node."""
    model = parser.parse_model(
        """<ir_version: 8, opset_import: ["": 17]>
g (float[n, 8] x, float[8, 8] w) => (float[n, 8] a, float[n, 8] t, float[n, 8] c) {
a = Abs(x)
b = Neg(a)
c = Mul(a, b)
t = MatMul(b, w) }"""
    )
    report = relu_ops.partition(model, tmp_path / "p")
    (group,) = report.taken
    assert group.outputs == ["a", "b", "c"]
    check_everywhere(model, tmp_path / "p", {"x": random(5, 8), "w": random(8, 8, seed=1)})


SUBGRAPHS = parser.parse_model(
    """<ir_version: 8, opset_import: ["": 17]>
g (float[n, 8] x, bool flag, int64 trips) => (float[n, 8] y, float[n, 8] last) {
outer = Softmax <axis = 1> (x)
keep = Constant <value_int = 1> ()
y = If (flag) <
  then_branch = t () => (float[n, 8] ty) {
    ta = Mul(outer, x)
    tb = Abs(ta)
    tc = MatMul(tb, square)
    ty = Sub(tc, x)
  },
  else_branch = e () => (float[n, 8] ey) {
    ea = Add(outer, x)
    ey = Neg(ea)
  }
>
yes = Cast <to = 9> (keep)
last = Loop (trips, yes, x) <
  body = b (int64 i, bool c, float[n, 8] state) => (bool d, float[n, 8] next) {
    d = Identity(c)
    la = Mul(state, outer)
    lb = Sub(la, state)
    next = Abs(lb)
  }
> }"""
)
SUBGRAPHS.graph.initializer.append(numpy_helper.from_array(random(8, 8), "square"))


def test_subgraphs(tmp_path: Path, greedy: None) -> None:
    report = relu_ops.partition(SUBGRAPHS, tmp_path / "p", dims={"n": 3})
    where = {tuple(group.nodes): group.where for group in report.taken}
    assert where[("Mul", "Abs")].endswith(".then_branch")
    assert where[("Add", "Neg")].endswith(".else_branch")
    assert where[("Mul", "Sub", "Abs")].endswith(".body")
    for flag in (False, True):
        feeds = {"x": random(3, 8), "flag": np.asarray(flag), "trips": np.asarray(3)}
        check_everywhere(SUBGRAPHS, tmp_path / "p", feeds, reference=False)


FUNCTIONS = parser.parse_model(
    """<ir_version: 10, opset_import: ["": 17, "local": 1]>
g (float[n, 8] x) => (float[n, 8] y) {
a = local.Act <slope = 0.25> (x)
y = local.Act (a) }
<domain: "local", opset_import: ["": 17]>
Act <slope: float = 0.5> (u) => (v) {
s = Softmax <axis = 1> (u)
p = Mul(s, u)
q = Abs(p)
r = LeakyRelu <alpha: float = @slope> (q)
v = Neg(r) }"""
)


def test_local_functions(tmp_path: Path, greedy: None) -> None:
    """The body is partitioned; what refers to an attribute of the function is left."""
    report = relu_ops.partition(FUNCTIONS, tmp_path / "p", dims={"n": 3})
    assert {group.where for group in report.taken} == {"function local.Act"}
    assert [group.nodes for group in report.taken] == [["Mul", "Abs"], ["Neg"]]
    feeds = {"x": random(3, 8)}  # onnx.reference runs no function of such attributes
    check_everywhere(FUNCTIONS, tmp_path / "p", feeds, reference=False)


def random_network(seed: int) -> onnx.ModelProto:
    """Any nodes in any order: in scope, out of it, with shared and dead values."""
    rng = np.random.default_rng(seed)
    nodes, live = [], ["x", "s"]
    wide = ["x"]
    for k in range(int(rng.integers(4, 30))):
        kind = str(rng.choice(["Add", "Mul", "Sub", "Abs", "Neg", "Max", "Relu", "MatMul", "Tanh"]))
        name = f"v{k}"
        if kind in ("Add", "Mul", "Sub", "Max"):
            inputs = [str(rng.choice(wide)), str(rng.choice(live))]
        elif kind == "MatMul":
            inputs = [str(rng.choice(wide)), "w"]
        else:
            inputs = [str(rng.choice(wide))]
        nodes.append(helper.make_node(kind, inputs, [name]))
        wide.append(name)
        live.append(name)
    rng.shuffle(live)
    ends = [name for name in live if name in wide and name != "x"][:3]
    info = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4]),
        helper.make_tensor_value_info("s", TensorProto.FLOAT, [4]),
    ]
    outputs = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["n", 4]) for n in ends]
    weights = [numpy_helper.from_array(random(4, 4) / 4, "w")]
    graph = helper.make_graph(nodes, "g", info, outputs, weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.mark.parametrize("seed", range(12))
def test_random_networks(seed: int, tmp_path: Path, greedy: None) -> None:
    model = random_network(seed)
    report = relu_ops.partition(model, tmp_path / "p", dims={"n": 3})
    assert report.checked
    if report.taken:
        want = run(stock(model), feeds := {"x": random(3, 4), "s": random(4, seed=1)})
        for y, z in zip(run(stock(str(tmp_path / "p" / door.MODEL)), feeds), want, strict=True):
            assert_same_bits(y, z, "outputs")
        onnx.checker.check_model(str(tmp_path / "p" / door.MODEL), full_check=True)


# ---------------------------------------------------------------------------------------------
# Models as they come


@pytest.mark.parametrize("measure", [False, True])
def test_weights_outside_stay_as_they_are(
    measure: bool, tmp_path: Path, greedy: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same file, by another name of it; no byte of it is written."""
    source = tmp_path / "source"
    source.mkdir()
    model = onnx.ModelProto()
    model.CopyFrom(CHAIN)
    onnx.save(
        model, source / "m.onnx", save_as_external_data=True, location="m.data", size_threshold=0
    )
    monkeypatch.setattr(partitioning, "LEAST_OF_WHOLE", 0)
    monkeypatch.setattr("relu_ops.partitioning.measuring.LEAST_GAIN", 0)
    monkeypatch.setattr("relu_ops.partitioning.measuring.ROUNDS", 1)
    report = relu_ops.partition(source / "m.onnx", tmp_path / "p", measure=measure)
    assert len(report.taken) == 1 and len(list(source.iterdir())) == 2
    names = ["m.data", "model.onnx", "operators.bundle", "report.json"]
    assert sorted(p.name for p in (tmp_path / "p").iterdir()) == names
    assert (tmp_path / "p" / "m.data").samefile(source / "m.data")
    feeds = {"x": random(7, 64), "scale": random(64, seed=1), "bias": random(64, seed=2)}
    (want,) = run(stock(CHAIN), feeds)
    (got,) = run(door.session(tmp_path / "p"), feeds)
    assert_same_bits(got, want, "outputs")


def test_an_old_format(tmp_path: Path, greedy: None) -> None:
    """Version 3, where initializers are inputs: they stay constants."""
    model = parser.parse_model(
        """<ir_version: 3, opset_import: ["": 9]>
g (float[2, 4] x, float[4] s) => (float[2, 4] y) {
a = Mul(x, s)
y = LeakyRelu(a) }"""
    )
    model.graph.initializer.append(numpy_helper.from_array(random(4), "s"))
    relu_ops.partition(model, tmp_path / "p")
    session = door.session(tmp_path / "p")
    assert [one.name for one in session.get_inputs()] == ["x"]
    assert not session.get_overridable_initializers()
    check_everywhere(model, tmp_path / "p", {"x": random(2, 4)}, reference=False)


def test_a_deviation_of_onnxruntime_explains_a_difference(tmp_path: Path, greedy: None) -> None:
    """Where gives +0.0 for a chosen -0.0 in onnxruntime; 1 / that is another infinity."""
    model = parser.parse_model(
        """<ir_version: 8, opset_import: ["": 17]>
g (float[n] x, float[n] y) => (float[n] z, float[n] w) {
c = Less(x, y)
z = Where(c, x, y)
w = Reciprocal(z) }"""
    )
    x, y = np.float32([-0.0, 1, 2]), np.float32([1, -0.0, 3])
    report = relu_ops.partition(model, tmp_path / "p", inputs={"x": x, "y": y})
    assert report.checked == "differ from onnxruntime's by its known deviations alone"
    (cause,) = report.causes
    assert cause.startswith("Where adds the two masked branches")
    assert run(door.session(tmp_path / "p"), {"x": x, "y": y})[1].tolist()[0] == -np.inf


def test_a_difference_that_nothing_explains_is_refused(
    tmp_path: Path, greedy: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A builder that confuses Abs with Neg; then two sessions that do not agree about the rest."""
    from relu_ops.partitioning import operators

    original = operators.function_of

    def wrong(model: onnx.ModelProto, domain: str, name: str) -> onnx.FunctionProto:
        function = original(model, domain, name)
        for node in function.node:
            node.op_type = {"Abs": "Neg"}.get(node.op_type, node.op_type)
        return function

    model = parser.parse_model(
        """<ir_version: 8, opset_import: ["": 17]>
g (float[n] x) => (float[n] z) {
y = Abs(x)
z = Mul(y, x) }"""
    )
    original_of = operators.model_of
    monkeypatch.setattr(operators, "function_of", wrong)
    relu_ops.partition(model, tmp_path / "fine")  # the function is not what runs
    monkeypatch.undo()

    def wrong_operator(group: Any) -> onnx.ModelProto:
        made = original_of(group)
        made.graph.node[0].op_type = "Neg"
        return made

    monkeypatch.setattr(rules, "decide", lambda group, dims: (True, "a test wants it"))
    monkeypatch.setattr(operators, "model_of", wrong_operator)
    with pytest.raises(BuildError, match="gives other outputs: "):
        relu_ops.partition(model, tmp_path / "p", inputs={"x": np.float32([-1, 2])})
    assert not (tmp_path / "p").exists()


def test_bad_input_is_refused(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "junk.onnx").write_bytes(b"junk" * 9)
    with pytest.raises(ArgumentError, match="exists and is no partitioned model"):
        relu_ops.partition(CHAIN, tmp_path / "other")
    with pytest.raises(ArgumentTypeError, match="the folder's path must be a path"):
        relu_ops.partition(CHAIN, 3)  # type: ignore[arg-type]
    with pytest.raises(
        ArgumentTypeError, match=r"must be a path, an onnx.ModelProto or bytes \(not"
    ):
        relu_ops.partition(3, tmp_path / "p")
    with pytest.raises(ModelError, match="is not a file"):
        relu_ops.partition(tmp_path / "none.onnx", tmp_path / "p")
    with pytest.raises(ModelError, match=r"junk\.onnx: is no ONNX model"):
        relu_ops.partition(tmp_path / "junk.onnx", tmp_path / "p")
    with pytest.raises(ModelError, match=r"does not run the model on these inputs: .* x for"):
        relu_ops.partition(CHAIN, tmp_path / "p", inputs={"x": random(9, 9)}, dims={"batch": 512})
    assert sorted(p.name for p in tmp_path.iterdir()) == ["junk.onnx", "other"]


def test_a_folder_is_replaced(tmp_path: Path) -> None:
    first = relu_ops.partition(CHAIN, tmp_path / "p", dims={"batch": 512})
    second = relu_ops.partition(CHAIN, tmp_path / "p", dims={"batch": 1})
    assert first.digest is not None and second.digest is None
    assert json.loads((tmp_path / "p" / "report.json").read_text()) == second.as_dict()
    assert not (tmp_path / "p" / door.BUNDLE).exists()


def test_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the times that are measured: what wins is taken, with its times; the whole has some."""
    from relu_ops.partitioning import measuring

    monkeypatch.setattr(measuring, "ROUNDS", 3)
    monkeypatch.setattr(partitioning, "LEAST_OF_WHOLE", 0)
    asked: list[Sequence[tuple[int, ...]]] = []
    original = measuring.compare_group

    def wins(*arguments: Any) -> measuring.Times:
        asked.append(arguments[4])
        times = original(*arguments)
        assert times.stock > 0 and times.own > 0
        return measuring.Times(2e-6, 1e-6)

    monkeypatch.setattr(measuring, "compare_group", wins)
    report = relu_ops.partition(CHAIN, tmp_path / "p", dims={"batch": 5}, measure=True)
    assert asked == [((5, 64), (64,), (64,))]
    (group,) = report.taken
    assert (group.stock_seconds, group.own_seconds) == (2e-6, 1e-6)
    assert group.why == "measured"
    assert report.stock_seconds and report.own_seconds
    monkeypatch.setattr(measuring, "compare_group", lambda *_: measuring.Times(1e-6, 1e-6))
    report = relu_ops.partition(CHAIN, tmp_path / "p", dims={"batch": 5}, measure=True)
    assert not report.taken and report.groups[0].why == "measured"


def test_a_whole_that_does_not_gain_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from relu_ops.partitioning import measuring

    monkeypatch.setattr(measuring, "compare_group", lambda *_: measuring.Times(2e-6, 1e-6))
    monkeypatch.setattr(measuring, "in_turn", lambda *_: measuring.Times(1e-6, 1.1e-6))
    report = relu_ops.partition(CHAIN, tmp_path / "p", measure=True)
    assert report.digest is None and report.own_seconds == 1.1e-6
    assert report.groups[0].why == "the whole model does not gain by it"
    assert operators_of(tmp_path / "p") == [node.op_type for node in CHAIN.graph.node]
    assert not (tmp_path / "p" / door.BUNDLE).exists()


def test_the_checker_sees_what_is_wrong(tmp_path: Path, greedy: None) -> None:
    """A bundle whose operator computes something else, under the digest of its own."""
    relu_ops.partition(CHAIN, tmp_path / "p")
    assert partitioning.Report().taken == []
    model = onnx.load(tmp_path / "p" / door.MODEL)
    feeds = [{"x": random(7, 64), "scale": random(64, seed=1), "bias": random(64, seed=2)}]
    report = json.loads((tmp_path / "p" / "report.json").read_text())
    source = CHAIN.SerializeToString()
    assert not checking.check(source, tmp_path / "p", report["digest"], feeds)
    model.graph.node[-1].op_type, model.graph.node[-1].input[1] = "Mul", "y"
    model.graph.output[0].type.tensor_type.ClearField("shape")
    onnx.save(model, tmp_path / "p" / door.MODEL)
    with pytest.raises(checking.Difference, match="what is in no group otherwise"):
        checking.check(source, tmp_path / "p", report["digest"], feeds)


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    onnx.save(CHAIN, tmp_path / "m.onnx")
    np.savez(tmp_path / "x.npz", x=random(512, 64))
    command = ["partition", str(tmp_path / "m.onnx"), "--output", str(tmp_path / "p")]
    assert cli.main([*command, "--dim", "batch=512"]) == cli.FINE
    shown = capsys.readouterr()
    assert shown.out.splitlines() == [
        "1 group of nodes found, 1 taken",
        "  1 x Mul Add LeakyRelu float32[batch, 64]: taken as mul_add_leakyrelu: "
        "one pass over memory instead of several",
        "outputs: the same bits as onnxruntime's",
    ]
    assert shown.err == f"{tmp_path / 'p'}: written\n"
    assert cli.main([*command, "--input", str(tmp_path / "x.npz"), "--json"]) == cli.FINE
    shown = capsys.readouterr()
    assert json.loads(shown.out) == json.loads((tmp_path / "p" / "report.json").read_text())
    for wrong, words in (
        (["--dim", "3"], "--dim must be a name and an extent (not '3')"),
        (["--input", str(tmp_path / "m.onnx")], "is not a readable .npz file"),
        (["--target", "sparc"], "sparc"),
    ):
        assert cli.main([*command, *wrong]) == cli.UNUSABLE
        assert words in capsys.readouterr().err


# ---------------------------------------------------------------------------------------------
# Models that packages ship


PACKAGES = {
    "rapidocr-onnxruntime": "1.4.4",
    "ddddocr": "1.6.1",
    "nudenet": "3.4.2",
    "silero-vad": "6.2.3",
    "magika": "1.0.3",
}
USUAL = {"silero": {"input": [1, 576], "state": [2, 1, 128]}}
"""Shapes that a model does not say."""


def inputs_for(path: Path) -> dict[str, np.ndarray]:
    """Inputs that a shipped model takes: unknown extents are 64, but for the first."""
    found = {}
    for one in onnxruntime.InferenceSession(str(path)).get_inputs():
        shape = [d if isinstance(d, int) else 1 if k == 0 else 64 for k, d in enumerate(one.shape)]
        if "silero" in path.name:
            shape = USUAL["silero"].get(one.name, shape)
        if one.name == "sr":
            found[one.name] = np.asarray(16000, np.int64)
        elif one.type == "tensor(float)":
            found[one.name] = random(*shape)
    return found


@pytest.mark.exhaustive
@pytest.mark.parametrize("package", PACKAGES)
def test_models_that_packages_ship(package: str, tmp_path: Path, greedy: None) -> None:
    """Every group of them is taken, and no bit changes without a known cause."""
    wanted = f"{package}=={PACKAGES[package]}"
    download = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", str(tmp_path)]
    done = subprocess.run([*download, wanted], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"{wanted} cannot be had: {done.stderr[-300:]}")
    (wheel,) = tmp_path.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(tmp_path / "files")
    models = sorted((tmp_path / "files").rglob("*.onnx"))
    assert models
    for number, model in enumerate(models):
        inputs = inputs_for(model)
        report = relu_ops.partition(model, tmp_path / f"p{number}", inputs=inputs)
        assert report.checked and all(group.taken or group.why for group in report.groups)


WIDTH, LAYERS = 3072, 12
WATCHED = """
import sys, threading, time
import onnxruntime, onnx, tvm, relu_ops
from relu_ops.partitioning import rules
rules.decide = lambda group, dims: (True, "a test wants it")
def own():
    line = next(x for x in open("/proc/self/status") if x.startswith("RssAnon"))
    return int(line.split()[1]) << 10
seen = [own()]
def watch():
    while True:
        seen.append(own())
        time.sleep(0.005)
threading.Thread(target=watch, daemon=True).start()
report = relu_ops.partition(sys.argv[1], sys.argv[2])
print(len(report.taken), max(seen) - seen[0])
"""


def test_weights_outside_take_no_memory(tmp_path: Path) -> None:
    """Of 432 MiB of weights, in a file of holes, one tensor at a time is held: 36 MiB."""
    size = 4 * WIDTH * WIDTH
    weights, nodes, x = [], [], "x"
    for k in range(LAYERS):
        weight = TensorProto(name=f"w{k}", data_type=TensorProto.FLOAT, dims=[WIDTH, WIDTH])
        weight.data_location = TensorProto.EXTERNAL
        place = {"location": "weights", "offset": str(k * size), "length": str(size)}
        for key, value in place.items():
            weight.external_data.add(key=key, value=value)
        weights.append(weight)
        nodes += [
            helper.make_node("MatMul", [x, f"w{k}"], [f"m{k}"]),
            helper.make_node("LeakyRelu", [f"m{k}"], [f"l{k}"], alpha=0.1),
            helper.make_node("Mul", [f"l{k}", "scale"], [f"y{k}"]),
        ]
        x = f"y{k}"
    weights.append(numpy_helper.from_array(random(WIDTH), "scale"))
    ends = [helper.make_tensor_value_info(name, 1, ["rows", WIDTH]) for name in ("x", x)]
    graph = helper.make_graph(nodes, "large", ends[:1], ends[1:], weights)
    opset = helper.make_opsetid("", 17)
    (tmp_path / "m.onnx").write_bytes(
        helper.make_model(graph, opset_imports=[opset], ir_version=9).SerializeToString()
    )
    with (tmp_path / "weights").open("wb") as file:
        file.truncate(LAYERS * size)
    done = children.run(WATCHED, tmp_path / "m.onnx", tmp_path / "folder")
    assert done.returncode == 0, done.stderr[-2000:]
    taken, grown = map(int, done.stdout.split())
    assert taken == LAYERS
    assert grown < 2 * size
