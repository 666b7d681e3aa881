"""relu_ops in onnxruntime's sessions and onnx.reference, and a session in onnxruntime's clothes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper
from onnx.reference import ReferenceEvaluator

import relu_ops
from relu_ops import graphs
from relu_ops.errors import ArgumentError, ArgumentTypeError, BundleError
from relu_ops.interop import onnx_reference
from relu_ops.interop import onnxruntime as door

onnxruntime = pytest.importorskip("onnxruntime")

X = np.float32([[-2.0, -0.0, 3.0, np.nan]])


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    path = tmp_path_factory.mktemp("door") / "acts.bundle"
    models = {"leaky": graphs.leaky_relu(alpha=0.5), "add": graphs.add_relu()}
    return path, relu_ops.build(models, ["native"], path)


def network(digest: str, name: str = "leaky", **metadata: str) -> onnx.ModelProto:
    """One node of a bundle, and a function of its name that computes something else: abs."""
    kind = door.node_type(name, digest)
    node = helper.make_node(kind, ["x"], ["y"], domain=door.DOMAIN)
    info = [helper.make_tensor_value_info(n, 1, ["n", "m"]) for n in "xy"]
    graph = helper.make_graph([node], "g", info[:1], info[1:])
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid(door.DOMAIN, 1)]
    body = [helper.make_node("Abs", ["a"], ["b"])]
    function = helper.make_function(door.DOMAIN, kind, ["a"], ["b"], body, opsets[:1])
    model = helper.make_model(graph, opset_imports=opsets, functions=[function], ir_version=8)
    helper.set_model_props(model, metadata)
    return model


def run(options: Any, model: onnx.ModelProto) -> np.ndarray:
    content = model.SerializeToString()
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    return session.run(None, {"x": X})[0]


def test_register(bundle: tuple[Path, str], tmp_path: Path) -> None:
    """Without the operators the function runs; with them, of one or two bundles, the kernels."""
    path, digest = bundle
    other = tmp_path / "other.bundle"
    second = relu_ops.build({"leaky": graphs.relu()}, ["native"], other)
    assert run(None, network(digest)).tolist()[0][:3] == [2, 0, 3]
    for wanted in (None, digest):
        options = onnxruntime.SessionOptions()
        door.register(options, path, wanted)
        assert run(options, network(digest)).tolist()[0][:3] == [-1, 0, 3]
    options = onnxruntime.SessionOptions()
    door.register(options, [path, str(other)], [digest, None])
    assert run(options, network(digest)).tolist()[0][:3] == [-1, 0, 3]
    assert run(options, network(second)).tolist()[0][:3] == [0, 0, 3]


def test_register_refuses(bundle: tuple[Path, str], tmp_path: Path) -> None:
    path, digest = bundle
    options = onnxruntime.SessionOptions()
    with pytest.raises(BundleError, match="it must have 0000"):
        door.register(options, path, "0" * 64)
    with pytest.raises(BundleError, match="no bundle can be read there"):
        door.register(options, tmp_path / "none")
    with pytest.raises(ArgumentError, match=r"one digest a bundle \(2 paths, 1 digests\)"):
        door.register(options, [path, path], [digest])
    with pytest.raises(ArgumentError, match=r"one digest a bundle \(0 paths"):
        door.register(options, [])
    with pytest.raises(
        ArgumentError, match=r"register: the paths of the bundles have [0-9]+ characters"
    ):
        door.register(options, [path] * 99)
    with pytest.raises(ArgumentTypeError, match=r"SessionOptions \(not dict\)"):
        door.register({}, path)
    door.register(options, path)
    with pytest.raises(ArgumentError, match=f"have bundles already: {path}"):
        door.register(options, path)


def test_session(bundle: tuple[Path, str], tmp_path: Path) -> None:
    """Opens a folder; refuses one whose bundle and model do not belong together."""
    path, digest = bundle
    path.rename(tmp_path / door.BUNDLE)
    (tmp_path / door.BUNDLE).rename(path)
    copy = tmp_path / door.BUNDLE
    relu_ops.build(
        {"leaky": graphs.leaky_relu(alpha=0.5), "add": graphs.add_relu()}, ["native"], copy
    )
    onnx.save(network(digest, **{door.DIGEST: digest}), tmp_path / door.MODEL)
    opened = door.session(tmp_path, digest=digest, providers=["CPUExecutionProvider"])
    assert opened.run(None, {"x": X})[0].tolist()[0][:3] == [-1, 0, 3]
    relu_ops.build({"leaky": graphs.relu()}, ["native"], copy)
    with pytest.raises(BundleError, match=f"the model beside it was made with {digest}"):
        door.session(tmp_path)
    with pytest.raises(ArgumentError, match=r"model\.onnx: is not there"):
        door.session(tmp_path / "none")


def test_onnx_reference(bundle: tuple[Path, str]) -> None:
    path, digest = bundle
    model = network(digest)
    assert ReferenceEvaluator(model).run(None, {"x": X})[0].tolist()[0][:3] == [2, 0, 3]
    evaluator = ReferenceEvaluator(model, new_ops=onnx_reference.operators(path, digest))
    y = evaluator.run(None, {"x": X})[0]
    assert y.tolist()[0][:3] == [-1, 0, 3] and np.signbit(y[0, 1])


# ---------------------------------------------------------------------------------------------
# A session in onnxruntime's clothes


@pytest.fixture(scope="module")
def pair() -> tuple[door.InferenceSession, Any]:
    """Ours, and onnxruntime's, of one model."""
    model = graphs.scale_bias_leaky_relu(alpha=0.5, channels=4)
    model.opset_import[0].version, model.ir_version = 18, 8
    theirs = onnxruntime.InferenceSession(model.SerializeToString())
    return door.InferenceSession(model, providers=["CPUExecutionProvider"]), theirs


FEEDS = {"x": np.float32([[-2, 0, 2, 4]]), "scale": np.ones(4, "f4"), "bias": np.ones(4, "f4")}


def test_a_session_is_like_onnxruntimes(pair: tuple[door.InferenceSession, Any]) -> None:
    ours, theirs = pair
    for mine, other in (
        (ours.get_inputs(), theirs.get_inputs()),
        (ours.get_outputs(), theirs.get_outputs()),
    ):
        assert [(a.name, a.type, a.shape) for a in mine] == [
            (a.name, a.type, a.shape) for a in other
        ]
    for names in (None, ["y"], ["y", "y"]):
        for mine, other in zip(ours.run(names, FEEDS), theirs.run(names, FEEDS), strict=True):
            assert mine.dtype == other.dtype and (mine == other).all()
    assert ours.get_providers() == theirs.get_providers()[-1:]


def test_bindings_are_like_onnxruntimes(pair: tuple[door.InferenceSession, Any]) -> None:
    results = []
    for session in pair:
        binding = session.io_binding()
        y = np.zeros((1, 4), np.float32)
        for name, x in FEEDS.items():
            binding.bind_cpu_input(name, x)
        binding.bind_output("y", "cpu", 0, np.float32, y.shape, y.ctypes.data)
        for _ in range(2):
            session.run_with_iobinding(binding)
        results.append(y)
        value = onnxruntime.OrtValue.ortvalue_from_numpy(FEEDS["x"] * 2)
        binding.bind_ortvalue_input("x", value)
        binding.clear_binding_outputs()
        binding.bind_output("y")
        session.run_with_iobinding(binding)
        results.append(binding.copy_outputs_to_cpu()[0])
    assert (results[0] == results[2]).all() and (results[1] == results[3]).all()
    assert results[0].tolist() == [[-0.5, 1, 3, 5]]


def test_a_session_refuses(
    bundle: tuple[Path, str], pair: tuple[door.InferenceSession, Any]
) -> None:
    ours, _ = pair
    with pytest.raises(
        ArgumentError, match="input_feed lacks scale, bias; the inputs are x, scale"
    ):
        ours.run(None, {"x": X})
    with pytest.raises(ArgumentError, match="input_feed has 'z'"):
        ours.run(None, {**FEEDS, "z": X})
    with pytest.raises(ArgumentError, match="has no output called 'q'\nhint: it has y"):
        ours.run(["q"], FEEDS)
    with pytest.raises(ArgumentTypeError, match=r"x\.dtype must be float32"):
        ours.run(None, {**FEEDS, "x": np.ones((1, 4))})
    with pytest.raises(ArgumentError, match="providers must list CPUExecutionProvider"):
        door.InferenceSession(graphs.relu(), providers=["CUDAExecutionProvider"])
    with pytest.raises(ArgumentError, match="no array is bound to scale"):
        binding = ours.io_binding()
        binding.bind_cpu_input("x", X)
        ours.run_with_iobinding(binding)
    named = door.InferenceSession(bundle[0], name="add", digest=bundle[1])
    assert [one.name for one in named.get_inputs()] == ["x", "residual"]
