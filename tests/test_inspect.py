"""Descriptions are plain data that say what is in a file; sources are what it compiles to."""

from __future__ import annotations

import importlib.util
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
from relu_ops import cli, graphs, targets
from relu_ops.bundle import manifest as manifests
from relu_ops.bundle import store as bundles
from relu_ops.compiler.cpu.disassembly import functions
from relu_ops.errors import (
    ArgumentError,
    BundleError,
    MissingDependencyError,
    ModelError,
    TargetError,
    UnsupportedError,
)
from relu_ops.report import inspect
from relu_ops.report.inspect.text import in_bytes
from relu_ops.targets import Machine

LEVELS = ["x86-64-v2", "x86-64-v3", "x86-64-v4"]
IMAGES = [f"{level}.image" for level in LEVELS]
FILES = ["SHA256SUMS", "leaky_relu.onnx", "manifest.json", *IMAGES]
V3 = Machine("x86_64", "made up", frozenset(targets.TARGETS["x86-64-v3"].flags))


@pytest.fixture(scope="module")
def leaky(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bundles") / "leaky.bundle"
    relu_ops.build(graphs.leaky_relu(alpha=0.1), LEVELS, path)
    return path


@pytest.fixture(scope="module")
def several(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bundles") / "several.bundle"
    models = {"one": graphs.relu(), "another": graphs.scale_bias_leaky_relu(channels=512)}
    relu_ops.build(models, LEVELS, path)
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
    (operator,) = found["operators"]
    assert operator["name"] == "leaky_relu"
    assert (found["format"], found["semantics"]) == (2, 1)
    assert found["sha256"] == held.digest
    assert found["size"] == sum(path.stat().st_size for path in files.values())
    assert operator["inputs"] == [{"name": "x", "dtype": "float32", "shape": None}]
    assert operator["outputs"] == [{"name": "y", "dtype": "float32", "shape": None}]
    assert [entry["path"] for entry in found["files"]] == FILES == sorted(files)
    for entry in found["files"]:
        content = files[entry["path"]].read_bytes()
        assert (entry["size"], entry["sha256"]) == (len(content), bundles.digest_of(content))
    assert found["producer"] == held.manifest.producer
    assert operator["graph"]["nodes"] == [
        {
            "name": "LeakyRelu_y",
            "operator": "LeakyRelu",
            "domain": "ai.onnx",
            "inputs": ["x"],
            "outputs": ["y"],
            "attributes": {"alpha": 0.1},
        }
    ]
    missing = f"the processor or its operating system lacks {', '.join(targets._V4)}"
    assert found["targets"] == [
        {
            "name": name,
            "runs_here": name != "x86-64-v4",
            "why_not": missing if name == "x86-64-v4" else None,
            "size": files[f"{name}.image"].stat().st_size,
            "requires": list(targets.TARGETS[name].flags),
        }
        for name in LEVELS
    ]


def test_a_bundle_of_several_operators(several: Path) -> None:
    found = plain(inspect.describe(several))
    one, another = found["operators"]
    assert (one["name"], another["name"]) == ("one", "another")
    assert [node["operator"] for node in another["graph"]["nodes"]] == ["Mul", "Add", "LeakyRelu"]
    assert another["inputs"] == [
        {"name": "x", "dtype": "float32", "shape": ["rows", 512]},
        {"name": "scale", "dtype": "float32", "shape": [512]},
        {"name": "bias", "dtype": "float32", "shape": [512]},
    ]
    text = inspect.render(found)
    assert text.startswith(f"bundle of 2 operators in {several}\n")
    assert "\n\noperator one\n\ninputs\n  x: float32[...]\n\noutputs\n" in text
    assert "\n\noperator another\n\ninputs\n  x: float32[rows, 512]\n" in text


def test_an_operator_s_bundle_is_described_too(leaky: Path) -> None:
    assert inspect.describe(relu_ops.load(leaky).bundle) == inspect.describe(leaky)


@pytest.mark.usefixtures("v3_machine")
def test_a_bundle_is_rendered(leaky: Path) -> None:
    text = inspect.render(inspect.describe(leaky))
    start, files, made = text.partition("\nfiles\n")[0], *text.split("\nfiles\n")[1].split("\n\n")
    sizes = [in_bytes((leaky / name).stat().st_size) for name in IMAGES]
    digest = bundles.read(leaky).digest
    size = sum(path.stat().st_size for path in leaky.iterdir()) / 1000
    expected = f"""\
bundle leaky_relu in {leaky}
  size      {size:.1f} KB
  sha256    {digest}
  versions  format 2, semantics 1

inputs
  x: float32[...]

outputs
  y: float32[...]

graph (opset ai.onnx 18, IR version 8)
  # y = 0.1 * x where x < 0, else x
  y = LeakyRelu(x, alpha=0.1)

targets
  x86-64-v2  {sizes[0]}  runs here
  x86-64-v3  {sizes[1]}  runs here
  x86-64-v4  {sizes[2]}  not here: the processor or its operating system lacks \
{", ".join(targets._V4)}
"""
    assert start == expected
    assert [line.split()[0] for line in files.splitlines()] == FILES
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
from relu_ops.report import inspect
from relu_ops.report.inspect.text import in_bytes
description = inspect.describe({str(leaky)!r})
(operator,) = description["operators"]
assert operator["graph"] is None and operator["inputs"][0]["name"] == "x"
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
    (copy / IMAGES[0]).write_bytes(b"\0" * (copy / IMAGES[0]).stat().st_size)
    for look in (inspect.describe, inspect.source, inspect.rebuild_check):
        with pytest.raises(BundleError, match=r"x86-64-v2\.image has the sha256"):
            look(copy)


def test_a_bundle_that_nothing_here_can_run_is_described_by_its_model(
    leaky: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As that of another machine: the signature is the model's then, or cannot be told."""

    class Refused:
        def __new__(cls, *_: object) -> None:
            raise TargetError("no variant can run on this machine's CPU")

    expected = inspect.describe(leaky)
    monkeypatch.setattr("relu_ops.runtime.operator.Operator", Refused)
    assert inspect.describe(leaky) == expected
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    found = inspect.describe(leaky)
    (operator,) = found["operators"]
    assert (operator["inputs"], operator["outputs"], operator["graph"]) == (None, None, None)
    text = inspect.render(found)
    assert "inputs\n  cannot be told here\n\noutputs\n  cannot be told here\n\ngraph\n" in text


# ---------------------------------------------------------------- built again


def first_instruction(path: Path) -> int:
    """Where the code of the image for v3 begins."""
    return functions((path / IMAGES[1]).read_bytes(), "leaky_relu")[0].at


def changed(path: Path, folder: Path, **producer: str) -> Path:
    """A copy of a bundle whose code has another byte, or that other tools made."""
    held = bundles.read(path)
    contents = {name: held.contents[name] for name in held.manifest.files}
    if not producer:
        image, at = contents[IMAGES[1]], first_instruction(path)
        contents[IMAGES[1]] = image[:at] + bytes([image[at] ^ 1]) + image[at + 1 :]
    made = {**held.manifest.producer, **producer}
    manifest = msgspec.structs.replace(held.manifest, producer=made)
    bundles.write(folder / "changed.bundle", bundles.pack(manifest, contents))
    return folder / "changed.bundle"


def test_a_bundle_built_again_is_identical(leaky: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = plain(inspect.rebuild_check(leaky))
    assert report["identical"] and not report["manifest"] and not report["tools"]
    assert inspect.rebuild_check(bundles.read(leaky)) == report
    assert [file["path"] for file in report["files"]] == ["leaky_relu.onnx", *IMAGES]
    assert cli.main(["inspect", "--rebuild-check", str(leaky)]) == 0
    out, err = capsys.readouterr()
    sizes = {file["path"]: in_bytes(file["size"]) for file in report["files"]}
    assert (err, out) == (
        "",
        f"""\
{leaky}: identical
  leaky_relu.onnx  identical, {sizes["leaky_relu.onnx"]}
  x86-64-v2.image  identical, {sizes["x86-64-v2.image"]}
  x86-64-v3.image  identical, {sizes["x86-64-v3.image"]}
  x86-64-v4.image  identical, {sizes["x86-64-v4.image"]}
""",
    )


@pytest.mark.parametrize("name", ["relu", "my relu"])
def test_names_come_back(tmp_path: Path, name: str) -> None:
    """Whether an operator was named by its graph or by whoever built it."""
    path = tmp_path / "a.bundle"
    relu_ops.build({name: graphs.relu()}, ["x86-64-v2"], path)
    assert inspect.rebuild_check(path)["identical"]


def test_several_operators_built_again(several: Path, tmp_path: Path) -> None:
    report = inspect.rebuild_check(several)
    assert report["identical"]
    assert [file["path"] for file in report["files"]] == ["one.onnx", "another.onnx", *IMAGES]
    first_as_its_graph = {"relu": graphs.relu(), "other": graphs.relu6()}
    relu_ops.build(first_as_its_graph, ["x86-64-v2"], tmp_path / "a.bundle")
    assert inspect.rebuild_check(tmp_path / "a.bundle")["identical"]


def test_an_image_that_differs(
    leaky: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = changed(leaky, tmp_path)
    size = (leaky / IMAGES[1]).stat().st_size
    assert cli.main(["inspect", "--rebuild-check", str(path), "--json"]) == 1
    report = json.loads(capsys.readouterr().out)
    assert not report["identical"] and not report["manifest"] and not report["tools"]
    assert [file["identical"] for file in report["files"]] == [True, True, False, True]
    assert report["files"][2] == {
        "path": IMAGES[1],
        "identical": False,
        "size": size,
        "rebuilt_size": size,
        "different": 1,
        "first_difference": first_instruction(leaky),
    }
    assert cli.main(["inspect", "--rebuild-check", str(path)]) == 1
    out = capsys.readouterr().out
    assert out.startswith(f"{path}: different\n")
    line = (
        f"1 bytes differ from offset {first_instruction(leaky)} on ({size} bytes, {size} rebuilt)"
    )
    assert f"  {IMAGES[1]}  {line}\n" in out
    assert "other versions" not in out


def test_other_tools_are_named(leaky: Path, tmp_path: Path) -> None:
    path = changed(leaky, tmp_path, onnx="1.0.0", linker="gold")
    report = inspect.rebuild_check(path)
    assert report["identical"]  # here they happen to make no difference
    here = bundles.read(leaky).manifest.producer
    assert report["tools"] == [
        {"name": "linker", "in_bundle": "gold", "here": "absent"},
        {"name": "onnx", "in_bundle": "1.0.0", "here": here["onnx"]},
    ]
    text = inspect.render_rebuild(report)
    assert "\nmade with other versions than this machine has\n" in text
    assert f"  onnx    bundle: 1.0.0  here: {here['onnx']}" in text
    different = inspect.render_rebuild({**report, "identical": False, "manifest": ["images"]})
    assert "machine has, which may be the reason\n" in different
    assert "\n  manifest.json  differs in images\n" in different


def test_a_manifest_that_says_something_else(leaky: Path, tmp_path: Path) -> None:
    """Of what an image requires, say, which the image itself says too."""
    held = bundles.read(leaky)
    none = manifests.Requirements(())
    images = tuple(msgspec.structs.replace(i, requires=none) for i in held.manifest.images)
    manifest = msgspec.structs.replace(held.manifest, images=images)
    contents = {name: held.contents[name] for name in held.manifest.files}
    bundles.write(tmp_path / "a.bundle", bundles.pack(manifest, contents))
    report = inspect.rebuild_check(tmp_path / "a.bundle")
    assert (report["identical"], report["manifest"]) == (False, ["images"])


def test_a_model_that_is_another_one(leaky: Path, tmp_path: Path) -> None:
    held = bundles.read(leaky)
    contents = {name: held.contents[name] for name in held.manifest.files}
    contents["leaky_relu.onnx"] = graphs.serialize(graphs.leaky_relu(alpha=0.2))
    bundles.write(tmp_path / "a.bundle", bundles.pack(held.manifest, contents))
    report = inspect.rebuild_check(tmp_path / "a.bundle")
    assert [file["identical"] for file in report["files"]] == [True, False, False, False]


def test_what_cannot_be_built_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = tmp_path / "a.onnx"
    model.write_bytes(graphs.serialize(graphs.relu()))
    assert cli.main(["inspect", "--rebuild-check", str(model)]) == 2
    message = f"relu-ops: {model}: is no bundle, so there is nothing to compare with\n"
    message += "hint: pass the directory of a bundle\n"
    assert capsys.readouterr() == ("", message)


def test_a_model_that_cannot_be_built(leaky: Path, tmp_path: Path) -> None:
    held = bundles.read(leaky)
    contents = {name: held.contents[name] for name in held.manifest.files}
    outside = model_of([helper.make_node("Exp", ["x"], ["y"], "boom")])
    contents["leaky_relu.onnx"] = graphs.serialize(outside)
    bundles.write(tmp_path / "a.bundle", bundles.pack(held.manifest, contents))
    with pytest.raises(UnsupportedError, match="boom"):
        inspect.rebuild_check(tmp_path / "a.bundle")


# ---------------------------------------------------------------- models


@pytest.mark.parametrize("name", graphs.MODELS)
def test_every_model_is_described_and_rendered(name: str) -> None:
    model = graphs.MODELS[name]()
    found = plain(inspect.describe(model))
    assert found["in_scope"] and found["why_not"] is None
    assert [node["operator"] for node in found["operators"][0]["graph"]["nodes"]] == [
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
    assert by_path["operators"][0]["inputs"][0] == {
        "name": "x",
        "dtype": "float32",
        "shape": ["rows", 512],
    }


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
  aarch64    not here: the processor is x86_64 (not aarch64)

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
    assert found["operators"][0]["graph"]["constants"] == [
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
    with pytest.raises(BundleError, match=r"SHA256SUMS cannot be opened"):
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
    "assembly": r"(?m)^ +[0-9a-f]+:\tv?cmp\w*ps",
}


def test_every_kind_has_its_sign() -> None:
    assert set(SIGNS) == set(targets.X86.forms)


@pytest.mark.parametrize("kind", targets.X86.forms)
def test_sources_of_a_bundle_and_of_its_model_are_the_same(leaky: Path, kind: str) -> None:
    text = inspect.source(leaky, "x86-64-v3", kind)
    assert re.search(SIGNS[kind], text)
    again = inspect.source(graphs.leaky_relu(alpha=0.1), "x86-64-v3", kind)
    # TVM names the types of LLVM's alias analysis after addresses of its own.
    addresses = re.compile(r'"0x[0-9a-f]+[.\w]*"')
    assert addresses.sub("", text) == addresses.sub("", again)


def test_the_assembly_is_what_ships(leaky: Path, tmp_path: Path) -> None:
    """Not what would be built of the model: a changed instruction shows."""
    held = bundles.read(leaky)
    text = inspect.source(held, "x86-64-v3", "assembly")
    at = int(re.search(r"(?m)^ +([0-9a-f]+):\tretq?$", text)[1], 16)
    contents = {name: held.contents[name] for name in held.manifest.files}
    image = contents[IMAGES[1]]
    assert image[at] == 0xC3
    contents[IMAGES[1]] = image[:at] + b"\xcc" + image[at + 1 :]
    bundles.write(tmp_path / "a.bundle", bundles.pack(held.manifest, contents))
    assert f"{at:x}:\tret" in text
    assert f"{at:x}:\tret" not in inspect.source(tmp_path / "a.bundle", "x86-64-v3", "assembly")


def test_machine_code_is_shown_without_onnx_and_tvm(leaky: Path) -> None:
    script = f"""
import sys
for name in ("onnx", "tvm", "elftools"):
    sys.modules[name] = None
from relu_ops.report import inspect
from relu_ops.report.inspect.text import in_bytes
print(inspect.source({str(leaky)!r}, "x86-64-v2", "assembly").count(":\\tret"))
"""
    done = children.run(script)
    assert done.stderr == "" and int(done.stdout) >= 3


def test_the_assembly_is_the_target_s() -> None:
    model = graphs.leaky_relu(dtype="float16")  # arithmetic takes the widest vectors
    wide = {level: "%zmm" in inspect.source(model, level, "assembly") for level in LEVELS}
    assert wide == {"x86-64-v2": False, "x86-64-v3": False, "x86-64-v4": True}


def test_a_model_is_shown_for_a_target_that_the_bundle_lacks(tmp_path: Path) -> None:
    path = tmp_path / "a.bundle"
    relu_ops.build(graphs.relu(), ["x86-64-v2"], path)
    for kind in targets.X86.forms:
        assert re.search(
            SIGNS[kind].replace("cmp", "(cmp|max)"), inspect.source(path, LEVELS[1], kind)
        )
    assert "__global__ void" in inspect.source(path, "cuda", "cuda")


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


def test_of_several_operators_one_is_shown(several: Path) -> None:
    shown = [inspect.source(several, "x86-64-v2", "assembly", name) for name in ("one", "another")]
    assert shown[0].startswith("one::") and shown[1].startswith("another::")
    assert "another::" not in shown[0] and "one::" not in shown[1]
    for kind in ("tir", "llvm"):
        shown = [inspect.source(several, "x86-64-v2", kind, name) for name in ("one", "another")]
        assert shown[0] != shown[1]
    with pytest.raises(ArgumentError) as caught:
        inspect.source(several)
    assert str(caught.value) == f"{several}: holds 2 operators; name must be one of one, another"
    with pytest.raises(ArgumentError) as caught:
        inspect.source(several, name="two")
    assert caught.value.message == f"{several}: has no operator called two; it has one, another"


def test_wrong_kinds_and_targets_are_refused() -> None:
    with pytest.raises(ArgumentError) as caught:
        inspect.source(graphs.relu(), kind="ptx")
    native_target = targets.native()
    expected = f"source: kind must be one of tir, llvm, assembly for {native_target} (not 'ptx')"
    assert caught.value.message == expected
    with pytest.raises(TargetError, match="target 'x86-64-v9' is not known"):
        inspect.source(graphs.relu(), "x86-64-v9")
    with pytest.raises(ArgumentError, match=r"one of tir, cuda for cuda \(not 'llvm'\)"):
        inspect.source(graphs.relu(), "cuda", "llvm")


def test_machine_code_needs_capstone(leaky: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "capstone" else find(name)
    )
    for look in (leaky, graphs.relu()):
        with pytest.raises(MissingDependencyError) as caught:
            inspect.source(look, kind="assembly")
        assert str(caught.value) == (
            "relu_ops.report.inspect.source of machine code needs the package capstone, which is "
            "not installed\nhint: pip install 'relu_ops[inspect]'"
        )


def test_the_sources_of_a_cuda_target() -> None:
    for target in ("cuda", "cuda-sm_90"):
        text = inspect.source(graphs.relu(), target, "cuda")
        assert "__global__ void __launch_bounds__(256) tile_0" in text
        assert "@T.prim_func" in inspect.source(graphs.relu(), target, "tir")
