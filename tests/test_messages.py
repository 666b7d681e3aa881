"""What users get wrong, and every word that they read then: the thing, what it is, what it must be,
what to do.

A row is a call as a user writes it, and the last lines that he sees: the name of the error, the
message and the hint.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import pickle
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnx.parser
import pytest

import relu_ops
from relu_ops import cache, cli, compiler, graphs
from relu_ops.errors import ReluOpsError
from relu_ops.report import inspect

MODELS = {
    "leaky": graphs.leaky_relu(alpha=0.5),
    "add": graphs.add_relu(),
    "int8": graphs.relu("int8"),
    "fixed": onnx.parser.parse_graph("fixed (float[2,4] x) => (float[2,4] y) { y = Relu(x) }"),
    "same": onnx.parser.parse_graph(
        "same (float[N] a, float[N] b) => (float[N] y) { s = Add(a, b) y = Relu(s) }"
    ),
    "two": onnx.parser.parse_graph(
        "two (float[N] x) => (float[N] y, bool[N] z) { y = Relu(x)  z = Less(y, x) }"
    ),
}
TARGET = "x86-64-v2"


def model_of(found: onnx.ModelProto | onnx.GraphProto) -> onnx.ModelProto:
    if isinstance(found, onnx.ModelProto):
        return found
    return onnx.helper.make_model(
        found, ir_version=8, opset_imports=[onnx.helper.make_opsetid("", 18)]
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models, their bundles, and what is neither."""
    folder = tmp_path_factory.mktemp("messages")
    for name, found in MODELS.items():
        onnx.save(model_of(found), folder / f"{name}.onnx")
        compiler.build(model_of(found), TARGET, folder / name)
    compiler.build({"a": folder / "leaky.onnx", "b": folder / "add.onnx"}, TARGET, folder / "ab")
    (folder / "empty").mkdir()
    (folder / "empty.onnx").write_bytes(b"")
    (folder / "text.npy").write_text("no")
    np.save(folder / "x.npy", np.ones(3, np.float32))
    np.save(folder / "d.npy", np.ones(3))
    return folder


@pytest.fixture
def here(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """That folder, as the one in which the user is."""
    monkeypatch.chdir(folder)
    return folder


@contextlib.contextmanager
def variable(name: str, value: str) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(name, value)
        yield


def under(name: str, value: str, call: Any) -> Any:
    """A call under an environment variable."""
    with variable(name, value):
        return call()


@pytest.fixture(scope="module")
def world(folder: Path) -> dict[str, Any]:
    """What the calls name."""
    loaded = {name: relu_ops.load(folder / name) for name in MODELS}
    read_only, bytes_from_one = np.ones(3, np.float32), np.zeros(13, np.uint8)[1:]
    read_only.flags.writeable = False
    modules = {"np": np, "relu_ops": relu_ops, "graphs": graphs, "inspect": inspect}
    tools = {"pickle": pickle, "copy": copy, "cache": cache, "under": under}
    return {
        **modules,
        **tools,
        "load": relu_ops.load,
        "compile": relu_ops.compile,
        "build": relu_ops.build,
        "op": SimpleNamespace(**loaded),
        "x": np.ones(3, np.float32),
        "ones": lambda *shape: np.ones(shape, np.float32),
        "read_only": read_only,
        "misaligned": bytes_from_one.view(np.float32),
    }


@pytest.fixture(autouse=True)
def _without_a_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RELU_OPS_CUDA_DRIVER", "libno_driver.so.1")


def message_of(call: str, world: dict[str, Any]) -> str:
    """What an interactive session would show of the error, its traceback apart."""
    with pytest.raises(ReluOpsError) as caught:
        eval(call, dict(world))
    return f"{type(caught.value).__name__}: {caught.value}"


CALLS = {
    "op.leaky()": (
        "ArgumentTypeError: leaky_relu takes 1 input (x), not 0\n"
        "hint: pass one array for each, by position, and where to write as out"
    ),
    "op.leaky(x, x)": (
        "ArgumentTypeError: leaky_relu takes 1 input (x), not 2\n"
        "hint: pass one array for each, by position, and where to write as out"
    ),
    "op.add(x)": (
        "ArgumentTypeError: add_relu takes 2 inputs (x, residual), not 1\n"
        "hint: pass one array for each, by position, and where to write as out"
    ),
    "op.leaky(x=x)": (
        "ArgumentTypeError: leaky_relu got an unexpected keyword argument 'x': it takes out and "
        "threads\n"
        "hint: pass inputs by position"
    ),
    "op.leaky(None)": (
        "ArgumentTypeError: leaky_relu: x must be an array of float32 (not NoneType)\n"
        "hint: pass an array, a number, or a sequence of numbers"
    ),
    'op.leaky("text")': (
        "ArgumentTypeError: leaky_relu: x must be an array of float32 (not str)\n"
        "hint: pass an array, a number, or a sequence of numbers"
    ),
    'op.leaky(["a"])': (
        "ArgumentTypeError: leaky_relu: x must be an array of float32 (not list of str)\n"
        "hint: pass an array, a number, or a sequence of numbers"
    ),
    'op.leaky([[1.0, "a"]])': (
        "ArgumentTypeError: leaky_relu: x must be an array of float32 (not list of list of "
        "str)\n"
        "hint: pass an array, a number, or a sequence of numbers"
    ),
    "op.leaky([1, None])": (
        "ArgumentTypeError: leaky_relu: x must be an array of float32 (not list of NoneType)\n"
        "hint: pass an array, a number, or a sequence of numbers"
    ),
    'op.leaky({"x": 1})': (
        "ArgumentTypeError: leaky_relu: x must be an array of float32 (not dict)\n"
        "hint: pass an array, a number, or a sequence of numbers"
    ),
    "op.leaky(1 + 2j)": (
        "ArgumentTypeError: leaky_relu: x must be an array of float32 (not complex)\n"
        "hint: pass an array, a number, or a sequence of numbers"
    ),
    "op.leaky(2**70)": (
        "ArgumentTypeError: leaky_relu: x must be an array of float32 (not int beyond 64 "
        "bits)\n"
        "hint: pass an array, a number, or a sequence of numbers"
    ),
    "op.int8([0.5])": (
        "ArgumentTypeError: relu: x must be int8; it holds numbers of kind float, which it "
        "cannot keep\n"
        "hint: convert it on purpose, for example with numpy.array(x, 'int8')"
    ),
    "op.int8([300])": (
        "ArgumentError: relu: x: Python integer 300 out of bounds for int8\n"
        "hint: int8 holds -128 to 127"
    ),
    "op.leaky(np.ones(3))": (
        "ArgumentTypeError: leaky_relu: x.dtype must be float32 (not float64)\n"
        "hint: convert it first, for example with x.astype('float32')"
    ),
    'op.leaky(np.array(["a"]))': (
        "ArgumentTypeError: leaky_relu: x.dtype must be float32 (not str32)\n"
        "hint: convert it first, for example with x.astype('float32')"
    ),
    "op.leaky(ones(*(1,) * 17))": (
        "ArgumentError: leaky_relu: x has 17 dimensions; at most 16 are supported\n"
        "hint: reshape it first: dimensions that lie together can be one"
    ),
    "op.add(x, ones(4))": (
        "ArgumentError: add_relu: these shapes do not broadcast together: x (3,), residual "
        "(4,)\n"
        "hint: shapes are aligned at their last dimension; there, extents must be equal, or 1"
    ),
    "op.fixed(ones(4, 2))": (
        "ArgumentError: fixed: x.shape must be (2, 4) (not (4, 2))\n"
        "hint: the model declares this: reshape the array, or declare another and build again"
    ),
    "op.fixed(x)": (
        "ArgumentError: fixed: x.shape must be (2, 4) (not (3,))\n"
        "hint: the model declares this: reshape the array, or declare another and build again"
    ),
    "op.same(x, ones(4))": (
        "ArgumentError: same: b.shape must be (N,) with N = 3, as a has it (not (4,))\n"
        "hint: the model declares this: reshape the array, or declare another and build again"
    ),
    "op.leaky(x, out=ones(4))": (
        "ArgumentError: leaky_relu: out for y.shape must be (3,) (not (4,))\n"
        "hint: pass an array of the output's dtype and shape, or leave out away"
    ),
    "op.leaky(x, out=np.ones(3))": (
        "ArgumentTypeError: leaky_relu: out for y.dtype must be float32 (not float64)\n"
        "hint: pass an array of the output's dtype and shape, or leave out away"
    ),
    'op.leaky(x, out=x.astype(">f4"))': (
        "ArgumentTypeError: leaky_relu: out for y.dtype must be float32 (not float32 of "
        "foreign byte order)\n"
        "hint: pass an array of the output's dtype and shape, or leave out away"
    ),
    "op.leaky(x, out=read_only)": (
        "ArgumentError: leaky_relu: out for y is read-only\n"
        "hint: pass a writable array, or leave out away"
    ),
    "op.leaky(x, out=[0.0, 0.0, 0.0])": (
        "ArgumentTypeError: leaky_relu: out must be an array, or a tuple of one (y), not list"
        " of 3\n"
        "hint: pass an array of the output's dtype and shape, or leave out away"
    ),
    'op.leaky(x, out="y")': (
        "ArgumentTypeError: leaky_relu: out for y must be a NumPy array or a torch tensor "
        "(not str)\n"
        "hint: pass an array of the output's dtype and shape, or leave out away"
    ),
    "op.leaky(x, out=np.lib.stride_tricks.as_strided(ones(1), (3,), (0,)))": (
        "ArgumentError: leaky_relu: out for y has several elements in one place (strides "
        "(0,))\n"
        "hint: pass an array whose elements lie apart"
    ),
    "op.two(x, out=x)": (
        "ArgumentTypeError: two: out must be a tuple of 2 arrays (y, z), not ndarray\n"
        "hint: pass an array of the output's dtype and shape, or leave out away"
    ),
    "op.two(x, out=(ones(3), ones(3)))": (
        "ArgumentTypeError: two: out for z.dtype must be bool (not float32)\n"
        "hint: pass an array of the output's dtype and shape, or leave out away"
    ),
    "op.leaky(x, threads=0)": (
        "ArgumentError: threads must be 1 to 256 (not 0)\n"
        "hint: None is the default: for a call the process's setting, for the process what "
        "it may use"
    ),
    'op.leaky(x, threads="4")': (
        "ArgumentTypeError: threads must be an int or None (not str)\n"
        "hint: None is the default: for a call the process's setting, for the process what "
        "it may use"
    ),
    "op.leaky(x, threads=2.0)": (
        "ArgumentTypeError: threads must be an int or None (not float)\n"
        "hint: None is the default: for a call the process's setting, for the process what "
        "it may use"
    ),
    "op.leaky.bind(misaligned)": (
        "ArgumentError: leaky_relu: x cannot be bound as it lies in memory: it would have to "
        "be copied at every call\n"
        "hint: pass an aligned array of native byte order, apart from out"
    ),
    "op.leaky.bind(x, out=misaligned)": (
        "ArgumentError: leaky_relu: out for y is misaligned\nhint: pass an aligned array"
    ),
    "op.leaky.bind(x)(x)": (
        "ArgumentTypeError: leaky_relu: a bound call takes no arguments\n"
        "hint: write new numbers into call.inputs"
    ),
    "pickle.dumps(op.leaky.bind(x))": (
        "ArgumentTypeError: leaky_relu: a bound call belongs to its arrays, and cannot be "
        "pickled or copied\n"
        "hint: pickle the operator and bind it again"
    ),
    "copy.copy(op.leaky.bind(x))": (
        "ArgumentTypeError: leaky_relu: a bound call belongs to its arrays, and cannot be "
        "pickled or copied\n"
        "hint: pickle the operator and bind it again"
    ),
    'relu_ops.relu(["a"])': (
        "ArgumentTypeError: relu: x must be an array of float32 (not list of str)\n"
        "hint: pass an array, a number, or a sequence of numbers"
    ),
    'relu_ops.relu(np.ones(3, "u1"))': (
        "ArgumentTypeError: relu: x.dtype must be one of float16, bfloat16, float32, float64,"
        " int8, int16, int32, int64 (not uint8)\n"
        "hint: convert it first, for example to float32"
    ),
    'relu_ops.leaky_relu(x, "0.1")': (
        "ArgumentTypeError: leaky_relu: alpha must be a real number (not '0.1')\n"
        "hint: a slope for each channel is a PRelu: compile relu_ops.graphs.prelu()"
    ),
    'relu_ops.leaky_relu(x, float("nan"))': (
        "ArgumentError: leaky_relu: alpha must be finite in float32 (not nan)\n"
        "hint: the largest number of float32 is 3.4028234663852886e+38"
    ),
    'relu_ops.leaky_relu(x.astype("f2"), 1e5)': (
        "ArgumentError: leaky_relu: alpha must be finite in float16 (not 100000.0)\n"
        "hint: the largest number of float16 is 65504.0"
    ),
    'relu_ops.set_num_threads("4")': (
        "ArgumentTypeError: count must be an int or None (not str)\n"
        "hint: None is the default: for a call the process's setting, for the process what "
        "it may use"
    ),
    "relu_ops.set_num_threads(1000)": (
        "ArgumentError: count must be 1 to 256 (not 1000)\n"
        "hint: None is the default: for a call the process's setting, for the process what "
        "it may use"
    ),
    'under("RELU_OPS_NUM_THREADS", "all", lambda: relu_ops.set_num_threads(None))': (
        "ArgumentError: RELU_OPS_NUM_THREADS must be 1 to 256 (not 'all')\n"
        "hint: unset it for as many threads as the process may use"
    ),
    'under("RELU_OPS_CACHE_SIZE", "10G", cache.size_limit)': (
        "ArgumentError: RELU_OPS_CACHE_SIZE must be a number of bytes (not '10G')\n"
        "hint: for example 1073741824"
    ),
    'load("missing")': (
        "BundleError: missing: no bundle can be read there: No such file or directory\n"
        "hint: pass the directory of a bundle, which relu_ops.build or relu-ops build writes"
    ),
    'load("leaky.onnx")': (
        "BundleError: leaky.onnx: no bundle can be read there: Not a directory\n"
        "hint: build a bundle of a model first: relu_ops.build, or relu-ops build"
    ),
    'load("empty")': (
        "BundleError: empty: SHA256SUMS cannot be opened: No such file or directory\n"
        "hint: pass the directory of a bundle, which relu_ops.build or relu-ops build writes"
    ),
    'load("a\\0b")': "ArgumentError: the bundle's path must hold no zero byte (not 'a\\x00b')",
    "load(3)": (
        "ArgumentTypeError: the bundle's path must be a path (not int)\n"
        "hint: pass the path of its directory"
    ),
    'load("leaky", digest="0" * 64)': (
        "BundleError: leaky: SHA256SUMS has the digest (that of the bundle); it must have "
        "0000000000000000000000000000000000000000000000000000000000000000\n"
        "hint: take the one that was meant or, if it was built anew on purpose, its new "
        "digest"
    ),
    'load("leaky", digest=3)': (
        "ArgumentTypeError: digest must be a text (not int)\n"
        "hint: pass what relu_ops.build returned, or None to take any"
    ),
    'load("leaky", name="relu")': (
        "ArgumentError: leaky: has no operator called relu; it has leaky_relu"
    ),
    'load("leaky", name=3)': (
        "ArgumentTypeError: name must be a text or None (not int)\nhint: the bundle has leaky_relu"
    ),
    'load("ab")': "ArgumentError: ab: holds 2 operators; name must be one of a, b",
    'load("ab", name="c")': "ArgumentError: ab: has no operator called c; it has a, b",
    'load("leaky", target="avx2")': (
        "TargetError: target 'avx2' is not known\n"
        "hint: known targets: x86-64-v2, x86-64-v3, x86-64-v4, aarch64, cuda, native, cuda-sm_NN"
    ),
    'load("leaky", target="x86-64-v3")': (
        "TargetError: leaky: has no variant for x86-64-v3; it has:\n"
        "  x86-64-v2: can run\n"
        "hint: name one that can run, or none for the best; or build it for that target too"
    ),
    'load("leaky", target=3)': (
        "TargetError: target 3 is not known\n"
        "hint: known targets: x86-64-v2, x86-64-v3, x86-64-v4, aarch64, cuda, native, cuda-sm_NN"
    ),
    'load("leaky", device="gpu")': (
        "ArgumentError: device must be 'cpu', 'cuda' or 'cuda:N' (not 'gpu')\n"
        "hint: for example 'cuda:0'"
    ),
    'load("leaky", device="cuda")': (
        "DeviceError: CUDA's driver cannot be used: libno_driver.so.1: cannot open shared object "
        "file: No such file or directory\n"
        "hint: install NVIDIA's driver, or load an image for the CPU"
    ),
    "relu_ops.Operator()": (
        "ArgumentTypeError: an Operator is not made by calling the class\n"
        "hint: compile a model with relu_ops.compile, or load a bundle with relu_ops.load"
    ),
    'relu_ops.Operator("leaky")': (
        "ArgumentTypeError: an Operator is not made by calling the class\n"
        "hint: compile a model with relu_ops.compile, or load a bundle with relu_ops.load"
    ),
    'under("RELU_OPS_CACHE", "~no-such-user/x", cache.directory)': (
        "CacheError: RELU_OPS_CACHE is ~no-such-user/x, and there is no home directory of "
        "~no-such-user\n"
        "hint: set RELU_OPS_CACHE to a directory"
    ),
    'inspect.source("leaky.onnx", name="leaky_relu")': (
        "ArgumentError: source: name chooses an operator of a bundle, and a model is one "
        "(not 'leaky_relu')\n"
        "hint: leave it out"
    ),
    'compile("leaki.onnx")': (
        "ModelError: leaki.onnx: cannot be read: No such file or directory\n"
        "hint: leaky.onnx is there"
    ),
    'compile("there/leaky.onnx")': (
        "ModelError: there/leaky.onnx: cannot be read: No such file or directory\n"
        "hint: there is no directory there"
    ),
    'compile("leaky")': (
        "ModelError: leaky: is a bundle, not a model\nhint: a bundle is loaded with relu_ops.load"
    ),
    'compile("empty")': (
        "ModelError: empty: is a directory, not a model\nhint: pass the .onnx file"
    ),
    'compile("empty.onnx")': (
        "ModelError: empty.onnx: is not an ONNX model: it is empty\nhint: export or copy it again"
    ),
    'compile("x.npy")': (
        "ModelError: x.npy: is not an ONNX model: it is a NumPy array\n"
        "hint: pass a model; an array is what an operator takes"
    ),
    "compile(3)": (
        "ArgumentTypeError: model must be a path, bytes, an onnx.ModelProto, an onnx_ir.Model"
        " or an onnxscript function (not int)"
    ),
    'compile("leaky.onnx", target="avx2")': (
        "TargetError: target 'avx2' is not known\n"
        "hint: known targets: x86-64-v2, x86-64-v3, x86-64-v4, aarch64, cuda, native, cuda-sm_NN"
    ),
    'build("leaky.onnx", [], "made")': (
        "ArgumentError: targets must name at least one target\nhint: for example ['native']"
    ),
    'build("leaky.onnx", 3, "made")': (
        "ArgumentTypeError: targets must be a list of names (not int)\nhint: for example ['native']"
    ),
    'build("leaky.onnx", "x86-64-v2", 3)': (
        "ArgumentTypeError: the bundle's path must be a path (not int)\n"
        "hint: pass the path of the directory to make"
    ),
    'build({}, "x86-64-v2", "made")': (
        "ArgumentError: a bundle must hold at least one operator (the mapping is empty)\n"
        "hint: map a name to a model"
    ),
    'build({3: "leaky.onnx"}, "x86-64-v2", "made")': (
        "ArgumentTypeError: an operator's name must be a text (not int)\nhint: map names to models"
    ),
    'build({"a": "empty.onnx"}, "x86-64-v2", "made")': (
        "ModelError: a: empty.onnx: is not an ONNX model: it is empty\n"
        "hint: export or copy it again"
    ),
    'relu_ops.verify("leaky.onnx", seed=-1)': (
        "ArgumentError: verify: seed must be at least 0 (not -1)\nhint: leave it out for 0"
    ),
    'relu_ops.verify("leaky.onnx", seed="1")': (
        "ArgumentTypeError: verify: seed must be an int (not str)\n"
        "hint: leave it out for the usual check"
    ),
    'relu_ops.verify("leaky.onnx", case="1")': (
        "ArgumentTypeError: verify: case must be an int (not str)\n"
        "hint: leave it out for the usual check"
    ),
    'relu_ops.verify("add.onnx", exhaustive=True)': (
        "ArgumentError: add_relu: every bit pattern can be checked for one input of any shape\n"
        "hint: leave out exhaustive; special values and random draws are checked all the same"
    ),
    'inspect.describe("missing")': (
        "ArgumentError: missing: there is no such file or directory\n"
        "hint: pass the directory of a bundle or an .onnx file"
    ),
    'inspect.source("leaky.onnx", "x86-64-v2", "asm")': (
        "ArgumentError: source: kind must be one of tir, llvm, assembly for x86-64-v2 (not "
        "'asm')\n"
        "hint: tir is TVM's loops, assembly the machine code that ships"
    ),
    'inspect.rebuild_check("leaky.onnx")': (
        "ArgumentError: leaky.onnx: is no bundle, so there is nothing to compare with\n"
        "hint: pass the directory of a bundle"
    ),
    'graphs.relu("f4")': (
        "ArgumentTypeError: relu: dtype must be one of float16, bfloat16, float32, float64, "
        "int8, int16, int32, int64 (not 'f4')\n"
        "hint: pass one of these names"
    ),
    'graphs.leaky_relu(alpha="a")': (
        "ArgumentTypeError: leaky_relu: alpha must be a real number (not 'a')\n"
        "hint: a number for each channel is an operand: graphs.prelu, "
        "graphs.scale_bias_leaky_relu"
    ),
}


COMMANDS = {
    "build missing.onnx --output made": (
        "missing.onnx: cannot be read: No such file or directory\n"
        "hint: pass the path of an .onnx file; a relative one begins in the current directory"
    ),
    "build leaky --output made": (
        "leaky: is a bundle, not a model\nhint: a bundle is loaded with relu_ops.load"
    ),
    "build leaky.onnx --output made --target avx2": (
        "target 'avx2' is not known\n"
        "hint: known targets: x86-64-v2, x86-64-v3, x86-64-v4, aarch64, cuda, native, cuda-sm_NN"
    ),
    "build leaky.onnx add.onnx --output made --name a": (
        "build: --name must be given once for each model (2 models, 1 name)\n"
        "hint: give them in the order of the models, or none"
    ),
    "build leaky.onnx --output x.npy": (
        "HERE/x.npy: exists and is not a bundle, so it is not replaced\nhint: choose another path"
    ),
    "export x.npy": (
        "export: folder must be a directory (x.npy is a file)\nhint: name another folder"
    ),
    "export x.npy/y": "x.npy/y: Not a directory",
    "inspect missing": (
        "missing: there is no such file or directory\n"
        "hint: pass the directory of a bundle or an .onnx file"
    ),
    "inspect leaky --name x": (
        "inspect: --name chooses what --source shows, and that is not given\n"
        "hint: give --source too, for example --source assembly, or leave it out"
    ),
    "inspect leaky --source tir --json": (
        "inspect: --source and --json do not go together\nhint: leave out one or the other"
    ),
    "inspect leaky --source cuda": (
        "source: kind must be one of tir, llvm, assembly for x86-64-v2 (not 'cuda')\n"
        "hint: tir is TVM's loops, assembly the machine code that ships"
    ),
    "inspect leaky.onnx --rebuild-check": (
        "leaky.onnx: is no bundle, so there is nothing to compare with\n"
        "hint: pass the directory of a bundle"
    ),
    "run missing x.npy": (
        "missing: no bundle can be read there: No such file or directory\n"
        "hint: pass the directory of a bundle, which relu_ops.build or relu-ops build writes"
    ),
    "run leaky.onnx x.npy": (
        "leaky.onnx: no bundle can be read there: Not a directory\n"
        "hint: build a bundle of a model first: relu_ops.build, or relu-ops build"
    ),
    "run leaky": (
        "leaky_relu takes 1 input (x), not 0\n"
        "hint: pass one array for each, by position, and where to write as out"
    ),
    "run leaky missing.npy": (
        "missing.npy: cannot be read: No such file or directory\nhint: write one with numpy.save"
    ),
    "run leaky text.npy": (
        "text.npy: is not a readable .npy file: EOF: reading magic string, expected 8 bytes "
        "got 2\n"
        "hint: write one with numpy.save, of an array of numbers"
    ),
    "run leaky d.npy": (
        "leaky_relu: x.dtype must be float32 (not float64)\n"
        "hint: convert it first, for example with x.astype('float32')"
    ),
    "run leaky x.npy --output a.npy --output b.npy": (
        "leaky_relu has 1 output; --output names 2\n"
        "hint: give --output once for each output, in their order, or not at all"
    ),
    "run leaky x.npy --output empty": (
        "empty: cannot be written: Is a directory\nhint: name another file with --output"
    ),
    "run ab x.npy": "ab: holds 2 operators; name must be one of a, b",
    "run leaky x.npy --target x86-64-v3": (
        "leaky: has no variant for x86-64-v3; it has:\n"
        "  x86-64-v2: can run\n"
        "hint: name one that can run, or none for the best; or build it for that target too"
    ),
    "verify missing": (
        "missing: cannot be read: No such file or directory\n"
        "hint: pass the path of an .onnx file; a relative one begins in the current directory"
    ),
    "verify leaky --seed -1": (
        "verify: seed must be at least 0 (not -1)\nhint: leave it out for 0"
    ),
    "verify add --exhaustive": (
        "add_relu: every bit pattern can be checked for one input of any shape\n"
        "hint: leave out exhaustive; special values and random draws are checked all the same"
    ),
    "bench leaky.onnx --graph relu": (
        "bench: --graph and --dtype choose among the benchmark's own cases, and leaky.onnx "
        "was named as well\n"
        "hint: leave out one or the other"
    ),
    "bench --size 0": (
        "bench: size must be at least 1 (not 0)\nhint: for example 65536, 64k or 1M"
    ),
    "bench --threads x": (
        "bench: threads must be 1 to 256 (not 'x')\n"
        "hint: leave it out for as many as the process may use"
    ),
    "bench --show missing": (
        "missing: cannot be read: No such file or directory\n"
        "hint: relu-ops bench --record FILE writes one"
    ),
    "bench --show x.npy": (
        "x.npy: is not a record of a benchmark: JSON is malformed: invalid character (byte "
        "0)\n"
        "hint: relu-ops bench --record FILE writes one"
    ),
    "bench --show x.json --size 64k": (
        "bench: --show measures nothing, and --size was given as well\n"
        "hint: leave out one or the other"
    ),
    "bench leaky.onnx --show x.json": (
        "bench: --show measures nothing, and path was given as well\n"
        "hint: leave out one or the other"
    ),
    "bench --compare a.json b.json --record p": (
        "bench: --compare measures nothing, and --record was given as well\n"
        "hint: leave out one or the other"
    ),
    "bench --compare a.json": (
        "bench: --compare must be given at least 2 records (not 1)\n"
        "hint: relu-ops bench --record FILE writes one"
    ),
    "verify leaky --python python3": (
        "verify: --python says which Python of another machine runs, and --on names none\n"
        "hint: give --on too, for example --on alpha, or leave it out"
    ),
    "bench leaky --on a,b": (
        "--on must be a host as ssh knows it (not 'a,b')\n"
        "hint: for example --on alpha or --on user@alpha.example; once for each host"
    ),
    "bench --record empty": (
        "empty: cannot be written: it is a directory\nhint: name a file, for example r.json"
    ),
    "plot leaky --output p.pdf": (
        "plot: the suffix of p.pdf must be .png or .svg (not '.pdf')\nhint: for example p.png"
    ),
    "plot add --output p.png": (
        "plot: add: add_relu must have one input (not 2: x, residual)\n"
        "hint: draw an operator of one number, such as relu_ops.graphs.leaky_relu()"
    ),
    "plot leaky --output p.png --range 1 0": (
        "plot: low must be below high (not 1.0 and 0.0)\n"
        "hint: for example -10 and 10, which are the default"
    ),
    "plot leaky --output p.png --range nan 0": (
        "plot: low must be finite (not nan)\nhint: for example -10 and 10, which are the default"
    ),
    "config": ("config: nothing was asked for\nhint: for example --cflags --libs"),
}


USAGE = {
    "bild": (
        "relu-ops: error: argument VERB: invalid choice: 'bild' (choose from 'export', "
        "'build', 'partition', 'inspect', 'run', 'verify', 'bench', 'tune', 'plot', 'doctor', "
        "'cache', 'wheel', 'export-kernel', 'config')"
    ),
    "build leaky.onnx": "relu-ops build: error: the following arguments are required: --output",
    "run leaky --what": "relu-ops: error: unrecognized arguments: --what",
    "inspect leaky --source asm": (
        "relu-ops inspect: error: argument --source: invalid choice: 'asm' (choose from "
        "'tir', 'llvm', 'assembly', 'cuda')"
    ),
    "verify leaky --seed x": "relu-ops verify: error: argument --seed: invalid int value: 'x'",
    "bench --size -5": (
        "relu-ops bench: error: argument --size: must be a number of elements (not '-5')"
    ),
    "bench --mode hot": (
        "relu-ops bench: error: argument --mode: invalid choice: 'hot' (choose from 'warm', "
        "'cold', 'consume')"
    ),
    "bench --compare": (
        "relu-ops bench: error: argument --compare: expected at least one argument"
    ),
    "plot leaky --output p.png --range a b": (
        "relu-ops plot: error: argument --range: invalid float value: 'a'"
    ),
    "cache drop": (
        "relu-ops cache: error: argument action: invalid choice: 'drop' (choose from 'list', "
        "'clear')"
    ),
}


@pytest.mark.parametrize("call", CALLS)
def test_a_bad_call(call: str, world: dict[str, Any], here: Path) -> None:
    digest = hashlib.sha256((here / "leaky" / "SHA256SUMS").read_bytes()).hexdigest()
    message = message_of(call, world).replace(digest, "(that of the bundle)")
    assert message == CALLS[call]
    assert not (here / "made").exists()


def failed(arguments: str, capsys: pytest.CaptureFixture[str]) -> str:
    """What a bad command says on stderr; nothing else is said, and the exit code is 2."""
    capsys.readouterr()
    try:
        code: Any = cli.main(arguments.split())
    except SystemExit as exit:
        code = exit.code
    said = capsys.readouterr()
    assert (code, said.out) == (2, "")
    return said.err


@pytest.mark.parametrize("command", COMMANDS)
def test_a_bad_command(command: str, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    expected = COMMANDS[command].replace("HERE", str(here))
    assert failed(command, capsys) == f"relu-ops: {expected}\n"
    assert not (here / "made").exists()


@pytest.mark.parametrize("command", USAGE)
def test_a_bad_usage(command: str, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    usage, _, refusal = failed(command, capsys).rstrip("\n").rpartition("\n")
    assert usage.startswith("usage: relu-ops ")
    unquoted = str.maketrans("", "", "'")  # since Python 3.12 argparse quotes no choices
    assert refusal.translate(unquoted) == USAGE[command].translate(unquoted)


def test_of_a_long_path_the_middle_is_left_out() -> None:
    """What is wrong stands behind it, and must not be cut."""
    for letter in ("a", "\N{GREEK SMALL LETTER ALPHA}"):
        path = "/".join([letter * 80] * 20)
        with pytest.raises(ReluOpsError) as caught:
            relu_ops.load(path)
        shown, _, reason = caught.value.message.partition(": ")
        assert reason == "no bundle can be read there: No such file or directory"
        head, _, tail = shown.partition("...")
        assert path.startswith(head) and path.endswith(tail) and len(head) > 100 < len(tail)
        assert len(shown.encode()) <= 511


def test_a_path_that_is_not_long_is_shown_whole() -> None:
    for length in (100, 511):
        path = "p/" * 200 + "q" * length
        path = path[-length:]
        with pytest.raises(ReluOpsError) as caught:
            relu_ops.load(path)
        assert caught.value.message.startswith(f"{path}: no bundle can be read there")


def test_there_are_enough_of_each() -> None:
    assert len(CALLS) > 70 and len(COMMANDS) > 30
