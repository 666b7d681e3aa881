"""The official ONNX node tests, through the backend.

Which of them are in scope is computed from their graphs, here and not by the frontend, so that a
frontend that refuses too much or too little fails.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import children
import numpy as np
import onnx
import onnx.backend.base
import pytest
from cases import TARGETS, as_bits, assert_same_bits
from onnx import TensorProto, helper, numpy_helper
from onnx.backend.test.case.test_case import TestCase as NodeCase
from onnx.backend.test.loader import load_model_tests
from onnx.backend.test.runner import Runner

import relu_ops
from relu_ops.contract.semantics import DTYPES, MINIMUM_OPSET, OPERATORS
from relu_ops.errors import ArgumentError, ArgumentTypeError, ModelError, UnsupportedError
from relu_ops.interop import onnx_backend

_DTYPES = {helper.np_dtype_to_tensor_dtype(row.numpy) for row in DTYPES.values()}


@functools.cache
def node_cases() -> dict[str, NodeCase]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the generators overflow and divide by zero on purpose
        loaded = load_model_tests(kind="node")
    return {case.name: case for case in loaded if case.model is not None}


# ---------------------------------------------------------------- what is in scope


def why_out_of_scope(model: onnx.ModelProto) -> str | None:
    """The reason why a model is out of scope; None where it is in scope."""
    opset = {o.domain or "ai.onnx": o.version for o in model.opset_import}.get("ai.onnx", 0)
    if opset < MINIMUM_OPSET and any(_changed_by(node, opset) for node in model.graph.node):
        return f"opset {opset}"
    for info in [*model.graph.input, *model.graph.output]:
        if info.type.WhichOneof("value") != "tensor_type":
            return "a value that is no tensor"
        if info.type.tensor_type.elem_type not in _DTYPES:
            return "a dtype"
    functions = {(f.domain, f.name): f for f in model.functions}
    constants = {tensor.name for tensor in model.graph.initializer}
    reasons = _reasons(model.graph.node, functions, constants)
    return next(reasons, None)


def _changed_by(node: onnx.NodeProto, opset: int) -> bool:
    """True where an operator means something else at an old opset than at the oldest in scope."""
    if node.op_type not in OPERATORS:
        return True
    versions = [onnx.defs.get_schema(node.op_type, o).since_version for o in (opset, MINIMUM_OPSET)]
    return versions[0] != versions[1]


def _reasons(nodes: Any, functions: dict[Any, Any], constants: set[str]) -> Iterator[str]:
    known = set(constants)
    for node in nodes:
        function = functions.get((node.domain, node.op_type))
        if function is not None:
            bound = {f for f, a in zip(function.input, node.input, strict=False) if a in known}
            yield from _reasons(function.node, functions, bound)
            continue
        if node.domain not in ("", "ai.onnx") or node.op_type not in OPERATORS:
            yield f"operator {node.op_type}"
        if all(name in known for name in node.input):
            known.update(node.output)
        yield from _reasons_of_attributes(node, known)


def _reasons_of_attributes(node: onnx.NodeProto, known: set[str]) -> Iterator[str]:
    if node.op_type == "ConstantOfShape" and node.input[0] not in known:
        yield "a computed shape"
    for attribute in node.attribute:
        names_a_dtype = attribute.name in ("to", "output_dtype", "precision") and attribute.i
        if names_a_dtype and attribute.i not in _DTYPES:
            yield "a dtype"
        if attribute.type == onnx.AttributeProto.TENSOR and attribute.t.data_type not in _DTYPES:
            yield "a dtype"
        if attribute.name in ("sparse_value", "value_string", "value_strings"):
            yield "a constant that is no dense tensor of numbers"


IN_SCOPE = [name for name, case in node_cases().items() if why_out_of_scope(case.model) is None]
WITHOUT_AN_OFFICIAL_TEST = {"ConstantOfShape"}
"""ONNX tests it with a computed shape only."""

OUT_OF_SCOPE = [name for name in node_cases() if name not in set(IN_SCOPE)]


def test_the_selection_is_not_empty(record_property: Callable[[str, object], None]) -> None:
    record_property("in_scope", len(IN_SCOPE))
    print(f"{len(IN_SCOPE)} of {len(node_cases())} official node tests are in scope")
    # onnx 1.23 has 238 of 1,884; a later onnx has more, and a scope that shrinks shows.
    assert len(IN_SCOPE) >= 230
    assert len(OUT_OF_SCOPE) >= 1000
    used = {node.op_type for name in IN_SCOPE for node in node_cases()[name].model.graph.node}
    assert set(OPERATORS) - used == WITHOUT_AN_OFFICIAL_TEST


# ---------------------------------------------------------------- running them


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", IN_SCOPE)
def test_official_node_test_passes(name: str, target: str) -> None:
    case = node_cases()[name]
    prepared = onnx_backend.prepare(case.model, "CPU", target=target)
    assert case.data_sets
    for inputs, outputs in case.data_sets:
        results = prepared.run([_array(x) for x in inputs])
        Runner.assert_similar_outputs(
            [_array(x) for x in outputs], results, rtol=case.rtol, atol=case.atol
        )


def _array(x: Any) -> np.ndarray:
    return numpy_helper.to_array(x) if isinstance(x, TensorProto) else np.asarray(x)


@pytest.mark.parametrize("name", OUT_OF_SCOPE)
def test_out_of_scope_node_test_is_refused(name: str) -> None:
    model = node_cases()[name].model
    with pytest.raises(ModelError) as caught:
        onnx_backend.prepare(model, "CPU")
    outside = {n.op_type for n in model.graph.node if n.op_type not in OPERATORS}
    if isinstance(caught.value, UnsupportedError) and outside and not model.functions:
        assert any(f"operator {op} of domain" in caught.value.message for op in outside)
    assert not onnx_backend.is_compatible(model)


def test_the_runner_of_onnx_takes_the_backend() -> None:
    runner = onnx.backend.test.BackendTest(onnx_backend, __name__)
    runner.include("^test_leakyrelu.*_cpu$|^test_relu_cpu$")
    suite = runner.test_cases["OnnxBackendNodeModelTest"]
    names = [n for n in vars(suite) if n.startswith(("test_leakyrelu", "test_relu"))]
    chosen = [n for n in names if n.endswith("_cpu") and "expanded" not in n]
    assert "test_leakyrelu_cpu" in chosen
    assert "test_relu_cpu" in chosen
    for name in chosen:
        suite(name).debug()


# ---------------------------------------------------------------- the interface


def leaky_relu_model() -> onnx.ModelProto:
    return onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["": 18]>
        leaky (float[N] x) => (float[N] y, float[N] z) {
            y = LeakyRelu <alpha = 0.5> (x)
            z = Neg (y)
        }"""
    )


def test_the_documented_line_works() -> None:
    x = np.asarray([-2.0, 3.0], np.float32)
    backend = relu_ops.interop.onnx_backend.prepare(leaky_relu_model(), "CPU")
    assert isinstance(backend, onnx.backend.base.BackendRep)
    results = backend.run([x])
    assert isinstance(results, tuple)
    for result, wanted in zip(results, ([-1.0, 3.0], [1.0, -3.0]), strict=True):
        assert_same_bits(result, np.asarray(wanted, np.float32), "the README's line")


@pytest.mark.parametrize("wrap", [lambda x: [x], lambda x: (x,), lambda x: {"x": x}, lambda x: x])
def test_inputs_may_be_a_list_a_tuple_a_mapping_or_an_array(wrap: Callable[..., Any]) -> None:
    x = np.asarray([-4.0, 8.0], np.float32)
    y, z = onnx_backend.run_model(leaky_relu_model(), wrap(x))
    assert_same_bits(y, np.asarray([-2.0, 8.0], np.float32), "y")
    assert_same_bits(z, np.asarray([2.0, -8.0], np.float32), "z")


def test_wrong_names_are_refused() -> None:
    backend = onnx_backend.prepare(leaky_relu_model())
    with pytest.raises(ArgumentTypeError) as caught:
        backend.run({"X": np.zeros(1, np.float32)})
    assert str(caught.value) == "leaky: inputs must have the names x (not X)"


@pytest.mark.parametrize(
    ("device", "supported"),
    [("CPU", True), ("CPU:0", True), ("CUDA", False), ("CPU:1", False), ("TPU", False)],
)
def test_devices(device: str, supported: bool) -> None:
    assert onnx_backend.supports_device(device) is supported
    assert onnx_backend.is_compatible(leaky_relu_model(), device) is supported
    if not supported:
        with pytest.raises(ArgumentError) as caught:
            onnx_backend.prepare(leaky_relu_model(), device)
        assert caught.value.message == f"device must be 'CPU' (not {device!r})"


def test_run_node() -> None:
    x = np.asarray([-2.0, np.nan, 3.0], np.float32)
    node = helper.make_node("LeakyRelu", ["x"], ["y"], alpha=0.5)
    (y,) = onnx_backend.run_node(node, [x])
    assert_same_bits(y, np.asarray([-1.0, np.nan, 3.0], np.float32), "run_node")
    old = helper.make_node("Add", ["a", "b"], ["c"], broadcast=1, axis=0)
    (c,) = onnx_backend.run_node(old, [np.ones((3, 2), np.float32), x], opset_version=6)
    assert_same_bits(c, np.float32(1) + np.stack([x, x], axis=1), "Add-6 along axis 0")
    clip = helper.make_node("Clip", ["x", "", "high"], ["y"])
    (y,) = onnx_backend.run_node(clip, [np.int8([1, 9]), np.int8(5)], outputs_info=[])
    assert_same_bits(y, np.int8([1, 5]), "Clip without its first bound")
    twice = helper.make_node("Add", ["a", "a"], ["b"])
    (y,) = onnx_backend.run_node(twice, np.int32([1, 2]))
    assert as_bits(y).tolist() == [2, 4]


def test_clip_before_opset_11_clips_infinities_to_the_extremes_of_float32() -> None:
    # The schema says so: min and max have the extremes of float32 as their defaults.
    largest = float(np.finfo(np.float32).max)
    for dtype, extreme in ((np.float32, largest), (np.float64, largest), (np.float16, np.inf)):
        x = np.asarray([-np.inf, np.nan, 0.5, np.inf], dtype)
        (y,) = onnx_backend.run_node(helper.make_node("Clip", ["x"], ["y"]), x, opset_version=6)
        assert_same_bits(y, np.asarray([-extreme, np.nan, 0.5, extreme], dtype), "Clip-6")


def test_run_node_refuses() -> None:
    node = helper.make_node("Relu", ["x"], ["y"])
    with pytest.raises(ArgumentTypeError, match=r"Relu takes 1 input \(x\), not 2"):
        onnx_backend.run_node(node, [np.zeros(1, np.float32)] * 2)
    with pytest.raises(UnsupportedError, match=r"operator Exp of domain ai\.onnx"):
        onnx_backend.run_node(helper.make_node("Exp", ["x"], ["y"]), [np.zeros(1, np.float32)])
    with pytest.raises(UnsupportedError, match="operator Relu of domain example"):
        other = helper.make_node("Relu", ["x"], ["y"], domain="example")
        onnx_backend.run_node(other, [np.zeros(1, np.float32)])
    with pytest.raises(ModelError, match=r"Relu-14 does not take uint8 for X"):
        onnx_backend.run_node(node, [np.zeros(1, np.uint8)])
    with pytest.raises(ArgumentTypeError, match=r"x\.dtype datetime64"):
        onnx_backend.run_node(node, [np.zeros(1, "datetime64[s]")])


def test_interop_is_lazy_and_names_what_is_missing() -> None:
    code = (
        "import sys, relu_ops.interop as i\n"
        "assert 'onnx' not in sys.modules, 'importing interop imports onnx'\n"
        "sys.modules['onnx'] = None\n"
        "import importlib.util as u; find = u.find_spec\n"
        "u.find_spec = lambda name, *a: None if name == 'onnx' else find(name, *a)\n"
        "try:\n    i.onnx_backend\n"
        "except ImportError as error: print(error)\n"
    )
    done = children.run(code)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == (
        "relu_ops.interop.onnx_backend needs the package onnx, which is not installed\n"
        "hint: pip install 'relu_ops[compile]'\n"
    )


def test_interop_has_no_other_names() -> None:
    doors = {path.stem for path in Path(relu_ops.interop.__file__).parent.iterdir()}
    shared = {"__init__", "__pycache__", "derivable", "inference_session"}
    assert dir(relu_ops.interop) == sorted(doors - shared)
    with pytest.raises(AttributeError, match="has no attribute 'tensorflow'"):
        _ = relu_ops.interop.tensorflow
