"""Files that people pass for models: named for what they are, before they are read whole."""

from __future__ import annotations

import gzip
import io
import os
import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import children
import numpy as np
import onnx
import pytest
from google.protobuf import json_format, text_format
from onnx import TensorProto
from short_models import constant, function, model, node, referring, refusal, result, value

from relu_ops import graphs
from relu_ops.compiler.frontend import files, import_model, limits, read_model

RELU = graphs.serialize(graphs.relu())


def zipped(**contents: bytes) -> bytes:
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w") as archive:
        for name, content in contents.items():
            archive.writestr(name, content)
    return held.getvalue()


def tarred() -> bytes:
    held = io.BytesIO()
    with tarfile.open(fileobj=held, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("m.onnx"))
    return held.getvalue()


def array() -> bytes:
    held = io.BytesIO()
    np.save(held, np.zeros(3))
    return held.getvalue()


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
FETCH = "download the file itself: this is what a server sent instead of it"
EXPORT = "export the model to ONNX with the library that made it"
UNPACK = "unpack it, and pass the .onnx file that is in it"

NO_MODELS: dict[str, tuple[bytes, str, str]] = {
    "lfs": (
        LFS,
        "a git-lfs pointer, which stands for a file that was not fetched",
        "run `git lfs pull` in its repository, or download the file itself",
    ),
    "html": (b"\n<!DOCTYPE html><html><body>404</body></html>", "an HTML page", FETCH),
    "html-upper": (b"\xef\xbb\xbf<HTML><HEAD>", "an HTML page", FETCH),
    "xml": (b"<?xml version='1.0'?><Error/>", "XML", f"{FETCH}; or, {EXPORT}"),
    "gzip": (gzip.compress(RELU), "compressed with gzip", "decompress it, for example with gunzip"),
    "zip": (
        zipped(**{"m.onnx": RELU}),
        "a zip archive (as the .pt files of torch are)",
        f"{UNPACK}; {EXPORT}",
    ),
    "tar": (tarred(), "a tar archive", UNPACK),
    "numpy": (array(), "a NumPy array", "pass a model; an array is what an operator takes"),
    "pickle": (b"\x80\x04\x95\x10", "a pickle (as torch saves)", EXPORT),
    "ort": (
        b"\x20\0\0\0ORTM\0\0",
        "a model in onnxruntime's own format (.ort)",
        "pass its .onnx file",
    ),
    "tflite": (
        b"\x1c\0\0\0TFL3",
        "a TensorFlow Lite model",
        "convert it, for example with tf2onnx",
    ),
    "safetensors": (
        (2).to_bytes(8, "little") + b"{}",
        "a safetensors file, weights without a graph",
        EXPORT,
    ),
    "library": (
        Path(sys.executable).read_bytes()[:4096],
        "an ELF program or library",
        "pass a model",
    ),
}


@pytest.mark.parametrize("what", NO_MODELS)
def test_what_is_no_model_is_named_for_what_it_is(what: str, tmp_path: Path) -> None:
    content, is_a, hint = NO_MODELS[what]
    path = tmp_path / "m.onnx"
    path.write_bytes(content)
    said = f"is not an ONNX model: it is {is_a}\nhint: {hint}"
    assert refusal(path) == f"{path}: {said}"
    assert refusal(content) == f"the model: {said}"


def test_an_empty_file(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.touch()
    assert refusal(path) == (
        f"{path}: is not an ONNX model: it is empty\nhint: export or copy it again"
    )


def test_text_in_a_binary_models_place_is_told_by_its_form(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    for text, form, suffix in (
        (json_format.MessageToJson(graphs.relu()), "JSON", ".json"),
        (onnx.printer.to_text(graphs.relu()), "the text of onnx.printer", ".onnxtxt"),
        (text_format.MessageToString(graphs.relu()), "a protobuf's text form", ".textproto"),
    ):
        path.write_text(text)
        assert refusal(path).startswith(
            f"{path}: is not an ONNX model in binary form: it is text\nhint: if it is a model in "
            f"{form}, give the file the suffix {suffix}; others are "
        )


def test_another_protobuf_has_no_graph(tmp_path: Path) -> None:
    path = tmp_path / "input_0.pb"
    path.write_bytes(constant("x", np.float32([1, 2])).SerializeToString())
    assert refusal(path).startswith(f"{path}: is not an ONNX model")


# ---------------------------------------------------------------- before it is read whole


def test_a_file_beyond_two_gib_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(RELU)
    os.truncate(path, 2**31)  # sparse: it takes no room
    code = """
import resource, sys
from relu_ops.compiler.frontend import import_model
resource.setrlimit(resource.RLIMIT_AS, (2**31, 2**31))
try:
    import_model(sys.argv[1])
except Exception as error:
    print(error)
"""
    done = children.run(code, path)
    assert done.stdout == (
        f"{path}: has {2**31} bytes; a model must have at most {2**31 - 1}\n"
        "hint: keep its weights beside it: onnx.save(model, path, save_as_external_data=True)\n"
    ), done.stderr


@pytest.mark.parametrize("what", ["lfs", "html", "gzip", "zip"])
def test_no_more_than_the_head_of_another_file_is_read(what: str, tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(NO_MODELS[what][0])
    os.truncate(path, 2**40)
    assert NO_MODELS[what][1] in refusal(path)


def test_a_model_through_a_pipe() -> None:
    """What a shell makes of <(curl ...)."""
    reader, writer = os.pipe()
    with os.fdopen(writer, "wb") as pipe:
        pipe.write(RELU)
    try:
        assert import_model(f"/dev/fd/{reader}").inputs
    finally:
        os.close(reader)


def test_a_pipe_without_an_end_is_read_to_the_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "FILE_BYTES", 10**6)
    with subprocess.Popen(["head", "-c", "200M", "/dev/zero"], stdout=subprocess.PIPE) as zeros:
        assert zeros.stdout is not None
        path = f"/dev/fd/{zeros.stdout.fileno()}"
        found = re.fullmatch(
            rf"{path}: has (\d+) bytes; a model must .* 1000000\nhint: .*", refusal(path)
        )
        zeros.stdout.close()
    assert found and int(found[1]) < 10**6 + 2 * files._CHUNK_BYTES


# ---------------------------------------------------------------- directories and paths


def test_directories_are_told_apart(tmp_path: Path) -> None:
    assert refusal(tmp_path) == (
        f"{tmp_path}: is a directory, not a model\nhint: pass the .onnx file"
    )
    (tmp_path / "a.onnx").write_bytes(RELU)
    assert refusal(tmp_path).endswith(f"hint: pass a file, for example {tmp_path / 'a.onnx'}")
    (tmp_path / "saved_model.pb").touch()
    assert "is a TensorFlow SavedModel" in refusal(tmp_path)
    (tmp_path / "SHA256SUMS").touch()
    assert refusal(tmp_path) == (
        f"{tmp_path}: is a bundle, not a model\nhint: a bundle is loaded with relu_ops.load"
    )


def test_a_path_that_is_no_path(tmp_path: Path) -> None:
    assert refusal("~/m.onnx").endswith("os.path.expanduser(path)")
    assert "onnx.parser.parse_model" in refusal(onnx.printer.to_text(graphs.relu()))
    assert refusal("a\0b").startswith("a\0b: cannot be read: ")


# ---------------------------------------------------------------- text forms


TEXTS = {
    ".onnxtxt": onnx.printer.to_text,
    ".json": json_format.MessageToJson,
    ".textproto": text_format.MessageToString,
    ".pbtxt": text_format.MessageToString,
}


@pytest.mark.parametrize("suffix", TEXTS)
def test_a_text_form_is_read(suffix: str, tmp_path: Path) -> None:
    body = [referring(node("LeakyRelu", "a", "b"), alpha="slope")]
    made = model(
        [node("Act", "x", "t", domain="local"), node("Add", "t w", "y")],
        initializers=[constant("w", np.float32([1]))],
        functions=[function("Act", "a", "b", body, slope=0.125)],
    )
    path = tmp_path / f"m{suffix}"
    if suffix == ".onnxtxt":  # which holds no attributes of functions
        made.graph.node[0].attribute.append(onnx.helper.make_attribute("slope", 0.125))
    path.write_text(TEXTS[suffix](made))
    assert result(path, [-1.0]) == [0.875]


def test_every_suffix_that_onnx_knows_is_known() -> None:
    from onnx import serialization

    registry = serialization.registry
    for suffix, form in files._TEXTS.items():
        assert registry.get_format_from_file_extension(suffix) == form
    known = set(registry._extension_to_format) - {".onnx", ".pb"}
    assert known == set(files._TEXTS)


@pytest.mark.parametrize(("suffix", "form"), files._TEXTS.items())
@pytest.mark.parametrize(
    "content", [b"{}", b"{", b"name: 'net'\nlayer {}", b"<", b"\xff\xfe", b"x"]
)
def test_a_text_that_is_no_model_is_refused_by_its_form(
    suffix: str, form: str, content: bytes, tmp_path: Path
) -> None:
    path = tmp_path / f"m{suffix}"
    path.write_bytes(content)
    assert refusal(path).startswith(f"{path}: is not an ONNX model in the form {form}, which its ")


def test_a_text_form_beyond_its_bound_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "m.onnxtxt"
    path.write_text("<")
    os.truncate(path, limits.TEXT_BYTES + 1)
    assert refusal(path) == (
        f"{path}: has {limits.TEXT_BYTES + 1} bytes; a model must have at most {limits.TEXT_BYTES}"
        "\nhint: convert it: onnx.save(onnx.load(path), 'model.onnx')"
    )


@pytest.mark.parametrize("opening", ["seq(", "optional(", "<a=g()=>(){", '"\\"" # "\n {'])
def test_a_text_nested_too_deep_does_not_end_the_process(opening: str, tmp_path: Path) -> None:
    """onnx's own parser overflows the stack."""
    path = tmp_path / "m.onnxtxt"
    path.write_text('<ir_version: 8, opset_import: ["": 18]> g (' + opening * 300_000)
    code = """
import sys
from relu_ops.compiler.frontend import import_model
from relu_ops.errors import ModelError
try:
    import_model(sys.argv[1])
except ModelError as error:
    print(error)
"""
    done = children.run(code, path)
    assert done.stdout.endswith("it is nested more than 100 deep\n"), done
    assert done.returncode == 0


# ---------------------------------------------------------------- external data through links


def external(location: str) -> onnx.ModelProto:
    tensor = constant("w", np.float32([1, 2]))
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)
    return model([node("Add", "x w", "y")], [value("x", [2])], [value("y", [2])], [tensor])


def hub(root: Path, location: str = "m.onnx.data") -> Path:
    """A cache as the hub's: names that are links into a folder of contents."""
    (root / "blobs").mkdir(parents=True)
    snapshot = root / "snapshots" / "abc" / "onnx"
    snapshot.mkdir(parents=True)
    for name, blob, content in (
        ("m.onnx", "1f", external(location).SerializeToString()),
        ("m.onnx.data", "2e", np.float32([1, 2]).tobytes()),
    ):
        (root / "blobs" / blob).write_bytes(content)
        (snapshot / name).symlink_to(f"../../../blobs/{blob}")
    return snapshot / "m.onnx"


def test_external_data_in_the_layout_of_the_hubs_cache(tmp_path: Path) -> None:
    assert result(hub(tmp_path), [0, 0]) == [1, 2]


def test_a_model_that_is_a_link_finds_its_data_beside_its_target(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "m.onnx").write_bytes(external("w.bin").SerializeToString())
    (tmp_path / "real" / "w.bin").write_bytes(np.float32([1, 2]).tobytes())
    (tmp_path / "linked.onnx").symlink_to("real/m.onnx")
    assert result(tmp_path / "linked.onnx", [0, 0]) == [1, 2]


def test_a_link_out_of_the_store_is_refused_with_advice(tmp_path: Path) -> None:
    path = hub(tmp_path / "cache")
    (tmp_path / "secret").write_bytes(bytes(8))
    (path.parent / "m.onnx.data").unlink()
    (path.parent / "m.onnx.data").symlink_to(tmp_path / "secret")
    assert refusal(path) == (
        "tensor 'w': external data: 'm.onnx.data' lies outside the model's folder\nhint: copy the "
        "model and its data into one folder, as files, for example with cp -L"
    )


@pytest.mark.parametrize("location", ["../m.onnx.data", "/etc/passwd", "../../../../secret", ""])
def test_a_location_outside_the_folder_is_refused_in_a_store_too(
    location: str, tmp_path: Path
) -> None:
    path = hub(tmp_path / "cache", location)
    (tmp_path / "secret").write_bytes(bytes(8))
    assert refusal(path) == (
        f"tensor 'w': external data: {location!r} lies outside the model's folder"
    )


def test_external_data_of_a_functions_default(tmp_path: Path) -> None:
    made = referring(node("Constant", "", "c"), onnx.AttributeProto.TENSOR, value="number")
    held = external("w.bin").graph.initializer[0]
    act = function("Act", "a", "b", [made, node("Add", "a c", "b")], number=held)
    (tmp_path / "w.bin").write_bytes(np.float32([1, 2]).tobytes())
    path = tmp_path / "m.onnx"
    path.write_bytes(
        model([node("Act", "x", "y", domain="local")], functions=[act]).SerializeToString()
    )
    assert result(path, [0.0]) == [1, 2]
    assert read_model(path).functions[0].attribute_proto[0].t.raw_data


# ---------------------------------------------------------------- constants that nothing mentions


@pytest.mark.parametrize("ir_version", [3, 10])
@pytest.mark.parametrize("kind", [TensorProto.INT4, TensorProto.STRING, TensorProto.FLOAT])
def test_a_constant_in_a_file_that_nothing_mentions_is_not_read(
    tmp_path: Path, kind: int, ir_version: int
) -> None:
    made = model([node("Relu", "x", "y")], ir_version=ir_version)
    unused = made.graph.initializer.add(name="u", data_type=kind, dims=[2], data_location=1)
    unused.external_data.add(key="location", value="not there.bin")
    if ir_version == 3:
        made.graph.input.append(value("u", (2,), TensorProto.FLOAT))
    path = tmp_path / "m.onnx"
    path.write_bytes(made.SerializeToString())
    assert result(path, [-1.0, 2.0]) == [0, 2]
    read = read_model(path)
    assert not read.graph.initializer and [i.name for i in read.graph.input] == ["x"]


def test_a_constant_in_a_file_that_something_mentions_is_read_or_refused(tmp_path: Path) -> None:
    made = model([node("Relu", "x", "y"), node("Shape", "u", "s")])
    unused = made.graph.initializer.add(name="u", data_type=TensorProto.INT4, dims=[2])
    unused.data_location = 1
    unused.external_data.add(key="location", value="not there.bin")
    path = tmp_path / "m.onnx"
    path.write_bytes(made.SerializeToString())
    assert refusal(path).startswith("tensor 'u' has dtype int4\nhint: supported dtypes: ")
