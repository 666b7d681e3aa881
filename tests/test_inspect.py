"""Descriptions are plain data that say what is in a file; sources are what it compiles to."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import children
import msgspec
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

import relu_ops
from relu_ops import bundle as bundles
from relu_ops import cli, graphs, inspect, targets
from relu_ops.errors import (
    ArgumentError,
    BundleError,
    MissingDependencyError,
    ModelError,
    TargetError,
)
from relu_ops.targets import Machine

LEVELS = ["x86-64-v2", "x86-64-v3", "x86-64-v4"]
V3 = Machine("x86_64", "made up", frozenset(targets.TARGETS["x86-64-v3"].flags))


@pytest.fixture(scope="module")
def leaky(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bundles") / "leaky.bundle"
    relu_ops.build(graphs.leaky_relu(alpha=0.1), LEVELS, path)
    return path


@pytest.fixture
def v3_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(targets, "this_machine", lambda: V3)


def model_of(nodes: list[onnx.NodeProto], *constants: onnx.TensorProto) -> onnx.ModelProto:
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n"]) for name in "xy"]
    graph = helper.make_graph(nodes, "made", [values[0]], [values[1]], constants)
    opsets = [helper.make_opsetid("", 18)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


def plain(description: dict[str, Any]) -> dict[str, Any]:
    """Through strict JSON and back: it must be plain data, and nothing may change."""
    assert json.loads(json.dumps(description, allow_nan=False)) == description
    return description


# ---------------------------------------------------------------- bundles


@pytest.mark.usefixtures("v3_machine")
def test_a_bundle_is_described(leaky: Path) -> None:
    found = plain(inspect.describe(leaky))
    held = bundles.read(leaky)
    files = {path.name: path for path in leaky.iterdir()}
    assert found["kind"] == "bundle"
    assert found["path"] == str(leaky)
    assert found["operator"] == "leaky_relu"
    assert found["sha256"] == held.digest
    assert found["size"] == sum(path.stat().st_size for path in files.values())
    assert found["inputs"] == [{"name": "x", "dtype": "float32", "shape": None}]
    assert found["outputs"] == [{"name": "y", "dtype": "float32", "shape": None}]
    assert {entry["path"] for entry in found["files"]} == set(files) - {bundles.MANIFEST}
    for entry in found["files"]:
        content = files[entry["path"]].read_bytes()
        assert (entry["size"], entry["sha256"]) == (len(content), bundles.digest_of(content))
    assert found["producer"] == held.manifest.producer
    assert found["graph"]["nodes"] == [
        {
            "name": "LeakyRelu_y",
            "operator": "LeakyRelu",
            "domain": "ai.onnx",
            "inputs": ["x"],
            "outputs": ["y"],
            "attributes": {"alpha": 0.1},
        }
    ]
    missing = ", ".join(targets._V4)
    assert found["targets"] == [
        {"name": "x86-64-v2", "runs_here": True, "why_not": None},
        {"name": "x86-64-v3", "runs_here": True, "why_not": None},
        {
            "name": "x86-64-v4",
            "runs_here": False,
            "why_not": f"the processor or its operating system lacks {missing}",
        },
    ]


def test_an_operator_s_bundle_is_described_too(leaky: Path) -> None:
    assert inspect.describe(relu_ops.load(leaky).bundle) == inspect.describe(leaky)


@pytest.mark.usefixtures("v3_machine")
def test_a_bundle_is_rendered(leaky: Path) -> None:
    text = inspect.render(inspect.describe(leaky))
    start, files, made = text.partition("\nfiles\n")[0], *text.split("\nfiles\n")[1].split("\n\n")
    digest = bundles.read(leaky).digest
    size = sum(path.stat().st_size for path in leaky.iterdir()) / 1000
    expected = f"""\
bundle leaky_relu in {leaky}
  size      {size:.1f} KB
  sha256    {digest}
  versions  format 1, semantics 1, tvm-ffi ABI {bundles.read(leaky).manifest.tvm_ffi_abi}

inputs
  x: float32[...]

outputs
  y: float32[...]

graph (opset ai.onnx 18, IR version 8)
  # y = 0.1 * x where x < 0, else x
  y = LeakyRelu(x, alpha=0.1)

targets
  x86-64-v2  runs here
  x86-64-v3  runs here
  x86-64-v4  not here: the processor or its operating system lacks {", ".join(targets._V4)}
"""
    assert start == expected
    assert [line.split()[0] for line in files.splitlines()] == [
        "model.onnx",
        *(f"{level}.so" for level in LEVELS),
    ]
    assert made.startswith("made by\n  apache-tvm ")
    assert all(line == line.rstrip() for line in text.splitlines())


def test_a_bundle_is_described_without_onnx(leaky: Path) -> None:
    script = f"""
import json, sys
for name in ("onnx", "tvm"):
    sys.modules[name] = None
import importlib.util
find = importlib.util.find_spec
importlib.util.find_spec = lambda name: None if name in ("onnx", "tvm") else find(name)
from relu_ops import inspect
description = inspect.describe({str(leaky)!r})
assert description["graph"] is None
print(inspect.render(description))
"""
    done = children.run(script)
    assert (done.returncode, done.stderr) == (0, "")
    assert (
        "graph\n"
        "  showing the graph needs the package onnx, which is not installed\n"
        "  hint: pip install 'relu_ops[compile]'\n"
    ) in done.stdout


def test_a_damaged_bundle_is_refused(leaky: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy.bundle"
    copy.mkdir()
    for path in leaky.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    (copy / "x86-64-v2.so").write_bytes(b"\0" * (copy / "x86-64-v2.so").stat().st_size)
    for look in (inspect.describe, inspect.source):
        with pytest.raises(BundleError, match=r"x86-64-v2\.so has the sha256"):
            look(copy)


# ---------------------------------------------------------------- built again


def changed(path: Path, folder: Path, **producer: str) -> Path:
    """A copy of a bundle whose libraries have one more byte, or that other tools made."""
    held = bundles.read(path)
    contents = dict(held.contents)
    if not producer:
        contents["x86-64-v3.so"] = b"\1" + contents["x86-64-v3.so"][1:] + b"more"
    files = tuple(
        msgspec.structs.replace(
            entry,
            size=len(contents[entry.path]),
            sha256=bundles.digest_of(contents[entry.path]),
        )
        for entry in held.manifest.files
    )
    made = {**held.manifest.producer, **producer}
    manifest = msgspec.structs.replace(held.manifest, files=files, producer=made)
    bundles.write(folder / "changed.bundle", manifest, contents)
    return folder / "changed.bundle"


def test_a_bundle_built_again_is_identical(leaky: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = plain(inspect.rebuild_check(leaky))
    assert report["identical"] and not report["manifest"] and not report["tools"]
    assert inspect.rebuild_check(bundles.read(leaky)) == report
    assert [file["path"] for file in report["files"]] == [
        "model.onnx",
        *(f"{level}.so" for level in LEVELS),
    ]
    assert cli.main(["inspect", "--rebuild-check", str(leaky)]) == 0
    out, err = capsys.readouterr()
    sizes = {file["path"]: inspect._bytes(file["size"]) for file in report["files"]}
    assert (err, out) == (
        "",
        f"""\
{leaky}: identical
  model.onnx    identical, {sizes["model.onnx"]}
  x86-64-v2.so  identical, {sizes["x86-64-v2.so"]}
  x86-64-v3.so  identical, {sizes["x86-64-v3.so"]}
  x86-64-v4.so  identical, {sizes["x86-64-v4.so"]}
""",
    )


def test_a_library_that_differs(
    leaky: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = changed(leaky, tmp_path)
    size = (leaky / "x86-64-v3.so").stat().st_size
    assert cli.main(["inspect", "--rebuild-check", str(path), "--json"]) == 1
    report = json.loads(capsys.readouterr().out)
    assert not report["identical"] and not report["manifest"] and not report["tools"]
    assert [file["identical"] for file in report["files"]] == [True, True, False, True]
    assert report["files"][2] == {
        "path": "x86-64-v3.so",
        "identical": False,
        "size": size + 4,
        "rebuilt_size": size,
        "different": 5,
        "first_difference": 0,
    }
    assert cli.main(["inspect", "--rebuild-check", str(path)]) == 1
    out = capsys.readouterr().out
    assert out.startswith(f"{path}: different\n")
    line = f"5 bytes differ from offset 0 on ({size + 4} bytes, {size} rebuilt)"
    assert f"  x86-64-v3.so  {line}\n" in out
    assert "other versions" not in out


def test_other_tools_are_named(leaky: Path, tmp_path: Path) -> None:
    path = changed(leaky, tmp_path, onnx="1.0.0", c_compiler="tcc 0.9")
    report = inspect.rebuild_check(path)
    assert report["identical"]  # here they happen to make no difference
    here = bundles.read(leaky).manifest.producer
    assert report["tools"] == [
        {"name": "c_compiler", "in_bundle": "tcc 0.9", "here": here["c_compiler"]},
        {"name": "onnx", "in_bundle": "1.0.0", "here": here["onnx"]},
    ]
    text = inspect.render_rebuild(report)
    assert "\nmade with other versions than this machine has\n" in text
    assert f"  onnx        bundle: 1.0.0    here: {here['onnx']}" in text
    different = inspect.render_rebuild({**report, "identical": False, "manifest": ["inputs"]})
    assert "machine has, which may be the reason\n" in different
    assert "\n  manifest.json  differs in inputs\n" in different


def test_a_manifest_that_says_something_else(leaky: Path, tmp_path: Path) -> None:
    held = bundles.read(leaky)
    manifest = msgspec.structs.replace(held.manifest, operator="relu")
    bundles.write(tmp_path / "a.bundle", manifest, held.contents)
    report = inspect.rebuild_check(tmp_path / "a.bundle")
    assert (report["identical"], report["manifest"]) == (False, ["operator"])


def test_what_cannot_be_built_again(
    leaky: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    model = tmp_path / "a.onnx"
    model.write_bytes(graphs.serialize(graphs.relu()))
    assert cli.main(["inspect", "--rebuild-check", str(model)]) == 2
    message = f"relu-ops: {model}: is no bundle, so there is nothing to compare with\n"
    assert capsys.readouterr() == ("", message)
    for name in ("CC", "CXX"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PATH", "")
    assert cli.main(["inspect", "--rebuild-check", str(leaky)]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("relu-ops: building an operator needs a C or C++ compiler")


# ---------------------------------------------------------------- models


@pytest.mark.parametrize("name", graphs.MODELS)
def test_every_model_is_described_and_rendered(name: str) -> None:
    model = graphs.MODELS[name]()
    found = plain(inspect.describe(model))
    assert found["in_scope"] and found["why_not"] is None
    assert [node["operator"] for node in found["graph"]["nodes"]] == [
        node.op_type for node in model.graph.node
    ]
    text = inspect.render(found)
    for value in model.graph.input:
        assert f"  {graphs.describe(value)}\n" in text
    for node in model.graph.node:
        assert f"{node.output[0]} = {node.op_type}({', '.join(node.input)}" in text


def test_a_file_its_bytes_and_its_model_say_the_same(tmp_path: Path) -> None:
    model = graphs.scale_bias_leaky_relu(channels=512)
    path = tmp_path / "model.onnx"
    path.write_bytes(graphs.serialize(model))
    by_path, by_bytes = inspect.describe(path), inspect.describe(path.read_bytes())
    assert by_path == {**by_bytes, "path": str(path)}
    assert by_bytes == inspect.describe(model)
    assert by_path["size"] == path.stat().st_size
    assert by_path["inputs"][0] == {"name": "x", "dtype": "float32", "shape": ["rows", 512]}


@pytest.mark.usefixtures("v3_machine")
def test_a_model_is_rendered() -> None:
    model = graphs.quantized_leaky_relu()
    assert (
        inspect.render(inspect.describe(model))
        == f"""\
model quantized_leaky_relu
  size      {len(graphs.serialize(model))} bytes
  sha256    {bundles.digest_of(graphs.serialize(model))}
  in scope  yes

inputs
  x: int8[...]

outputs
  y: int8[...]

graph (opset ai.onnx 19, IR version 9)
  # y = quantize(leaky_relu(dequantize(x))), alpha 0.01
  x_scale: float32[] = 0.05
  x_zero_point: int8[] = 0
  y_scale: float32[] = 0.05
  y_zero_point: int8[] = 0
  real = DequantizeLinear(x, x_scale, x_zero_point)
  rectified = LeakyRelu(real, alpha=0.01)
  y = QuantizeLinear(rectified, y_scale, y_zero_point)

targets it can be built for
  x86-64-v2  runs here
  x86-64-v3  runs here
  x86-64-v4  not here: the processor or its operating system lacks {", ".join(targets._V4)}

made by
  relu_ops"""
    )


def test_a_model_out_of_scope_is_described_with_the_reason() -> None:
    found = plain(inspect.describe(model_of([helper.make_node("Exp", ["x"], ["y"], "boom")])))
    assert not found["in_scope"]
    assert "boom" in found["why_not"] and "Exp" in found["why_not"]
    text = inspect.render(found)
    assert "  in scope  no\n" in text
    assert "  y = Exp(x)\n" in text


def test_attributes_and_constants_are_plain_and_short() -> None:
    many = onnx.numpy_helper.from_array(np.zeros(1000, np.float32), "many")
    few = onnx.numpy_helper.from_array(np.float32([np.nan, -np.inf, 0.1]), "few")
    flags = onnx.numpy_helper.from_array(np.array([True, False]), "flags")
    node = helper.make_node("Constant", [], ["c"], value=few)
    relu = helper.make_node("Relu", ["x"], ["y"])
    found = plain(inspect.describe(model_of([node, relu], many, flags)))
    assert found["graph"]["constants"] == [
        {"name": "many", "dtype": "float32", "shape": [1000]},
        {"name": "flags", "dtype": "bool", "shape": [2], "values": [True, False]},
    ]
    text = inspect.render(found)
    assert "  many: float32[1000]\n" in text
    assert "  flags: bool[2] = [True, False]\n" in text
    assert "  c = Constant(value=float32[3] = ['nan', '-inf', 0.1])\n" in text


def test_control_characters_do_not_reach_the_terminal() -> None:
    model = graphs.relu()
    model.graph.name = "evil\x1b[2Jname"
    model.graph.doc_string = "one\r\ntwo\x07"
    text = inspect.render(inspect.describe(model))
    assert "evil\\x1b[2Jname" in text and "two\\x07" in text
    assert all(line.isprintable() for line in text.split("\n"))


def test_a_malformed_model_and_a_missing_file_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "bad.onnx"
    path.write_bytes(b"no model")
    with pytest.raises(ModelError, match=r"bad\.onnx: is not an ONNX model"):
        inspect.describe(path)
    with pytest.raises(ArgumentError) as caught:
        inspect.describe("nowhere")
    assert str(caught.value) == (
        "nowhere: there is no such file or directory\n"
        "hint: pass the directory of a bundle or an .onnx file"
    )
    with pytest.raises(BundleError, match=r"manifest\.json cannot be opened"):
        inspect.describe(tmp_path)


def test_a_model_needs_onnx(monkeypatch: pytest.MonkeyPatch) -> None:
    model = graphs.relu()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    for look in (inspect.describe, inspect.source):
        with pytest.raises(MissingDependencyError, match=r"needs the package onnx"):
            look(model)


# ---------------------------------------------------------------- sources


SIGNS = {
    "tir": r"@T\.prim_func",
    "llvm": r"(?m)^define .*@",
    "assembly": r"(?m)^\s+v?cmp\w*ps",
    "c": "relu_ops_operator",
}


def test_every_kind_has_its_sign() -> None:
    assert set(SIGNS) == set(inspect.KINDS["cpu"])


@pytest.mark.parametrize("kind", inspect.KINDS["cpu"])
def test_sources_of_a_bundle_and_of_its_model_are_the_same(leaky: Path, kind: str) -> None:
    text = inspect.source(leaky, "x86-64-v3", kind)
    assert re.search(SIGNS[kind], text)
    again = inspect.source(graphs.leaky_relu(alpha=0.1), "x86-64-v3", kind)
    # TVM names the types of LLVM's alias analysis after addresses of its own.
    addresses = re.compile(r'"0x[0-9a-f]+"')
    assert addresses.sub("", text) == addresses.sub("", again)


def test_the_assembly_is_the_target_s() -> None:
    model = graphs.leaky_relu(dtype="float16")  # arithmetic takes the widest vectors
    wide = {level: "%zmm" in inspect.source(model, level, "assembly") for level in LEVELS}
    assert wide == {"x86-64-v2": False, "x86-64-v3": False, "x86-64-v4": True}


@pytest.mark.parametrize(
    ("machine", "held", "shown"),
    [
        (V3, LEVELS, "x86-64-v3"),
        (V3, ["x86-64-v2"], "x86-64-v2"),
        (V3, ["x86-64-v4"], "x86-64-v4"),
        (Machine("aarch64"), LEVELS, "x86-64-v2"),
    ],
)
def test_by_default_a_bundle_s_own_target_is_shown(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    machine: Machine,
    held: list[str],
    shown: str,
) -> None:
    """Whoever looks at a bundle wants what would run of it, and else what is in it."""
    path = tmp_path / "leaky.bundle"
    relu_ops.build(graphs.leaky_relu(dtype="float16"), held, path)
    expected = inspect.source(path, shown, "assembly")
    monkeypatch.setattr(targets, "this_machine", lambda: machine)
    assert inspect.source(path, kind="assembly") == expected


def test_wrong_kinds_and_targets_are_refused() -> None:
    with pytest.raises(ArgumentError) as caught:
        inspect.source(graphs.relu(), kind="ptx")
    native = targets.native()
    expected = f"source: kind must be one of tir, llvm, assembly, c for {native} (not 'ptx')"
    assert str(caught.value) == expected
    with pytest.raises(TargetError, match="target 'x86-64-v9' is not known"):
        inspect.source(graphs.relu(), "x86-64-v9")
    with pytest.raises(ArgumentError, match=r"one of tir, cuda, ptx, c for cuda \(not 'llvm'\)"):
        inspect.source(graphs.relu(), "cuda", "llvm")


def test_the_sources_of_a_cuda_target() -> None:
    assert "__global__ void __launch_bounds__(256) tile_0" in inspect.source(
        graphs.relu(), "cuda", "cuda"
    )
    assert "relu_ops_cuda" in inspect.source(graphs.relu(), "cuda-sm_90", "c")
