"""Images: laid out as native/image.h says, the same bytes every time, and right when called."""

from __future__ import annotations

import ctypes
import dataclasses
import mmap
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tvm_ffi.libinfo
from cases import TARGETS, assert_same_bits, random_array
from onnx import TensorProto, helper, numpy_helper

from relu_ops import graphs, targets
from relu_ops.compiler import frontend, image, layout
from relu_ops.compiler.cpu import codegen
from relu_ops.compiler.cpu.objects import Code, Constants, Reference
from relu_ops.compiler.cuda import codegen as codegen_cuda
from relu_ops.compiler.lock import LOCK
from relu_ops.compiler.patterns import CONTIGUOUS, REPEATED, leaves_of
from relu_ops.compiler.x86.backend import BACKEND as X86
from relu_ops.contract import ir, reference
from relu_ops.contract.semantics import DTYPES, SEMANTICS_VERSION
from relu_ops.errors import ArgumentError, BuildError, UnsupportedError
from relu_ops.native import _python as native

NATIVE = Path(__file__).parents[1] / "relu_ops" / "native"
LEVELS = targets.CPU_TARGETS
PC32 = X86.form.relocations[2]


def graph_of(name: str, **arguments: Any) -> ir.Graph:
    return frontend.import_model(graphs.GRAPHS[name](**arguments))


def built(graph: ir.Graph, target: str = "x86-64-v3", name: str = "op") -> bytes:
    return image.build([(name, graph)], targets.parse(target))


class Reading:
    """An image's tables, as they lie, and how many bytes of them were looked at."""

    def __init__(self, content: bytes) -> None:
        self.content = content
        self.looked_at = 0
        self.header = np.frombuffer(content, layout.HEADER, 1)[0]
        self.operators = self.rows(layout.OPERATOR, self.header["operators"])

    def rows(self, kind: np.dtype, table: Any) -> np.ndarray:
        assert table["at"] % (1 if kind.itemsize == 1 else 8) == 0
        self.looked_at += int(table["count"]) * kind.itemsize
        return np.frombuffer(self.content, kind, table["count"], table["at"])

    def text(self, text: Any) -> str:
        assert self.content[text["at"] + text["length"]] == 0
        self.looked_at += int(text["length"]) + 1
        return self.content[text["at"] :][: text["length"]].decode()

    def texts(self, table: Any) -> list[str]:
        return [self.text(row) for row in self.rows(layout.TEXT, table)]

    def dims(self, table: Any) -> list[int]:
        return self.rows(layout.DIM, table).tolist()

    def terms(self, table: Any) -> list[tuple[Any, ...]]:
        return [
            (row["seen"].item(), int(row["input"]), self.dims(row["dims"]))
            for row in self.rows(layout.TERM, table)
        ]


# ---------------------------------------------------------------- the layout


def test_structures_are_those_of_the_header(tmp_path: Path) -> None:
    compiler = shutil.which("cc")
    if not compiler:
        pytest.skip("there is no C compiler to ask")
    lines = [
        f'printf("{name} %zu", sizeof({name}));'
        + "".join(
            f'printf(" {field}:%zu+%zu", offsetof({name}, {field}), sizeof((({name}*)0)->{field}));'
            for field in kind.names
        )
        + 'printf("\\n");'
        for name, kind in layout.STRUCTURES.items()
    ]
    lines += ['printf("%s %d %d\\n", IMAGE_MAGIC, IMAGE_FORMAT, IMAGE_X86_64);']
    source = tmp_path / "layout.c"
    source.write_text(
        '#include "image.h"\n#include <stddef.h>\n#include <stdio.h>\n'
        f"int main(void) {{ {' '.join(lines)} return 0; }}\n"
    )
    program = tmp_path / "layout"
    includes = [f"-I{path}" for path in (NATIVE, *tvm_ffi.libinfo.include_paths())]
    subprocess.run([compiler, *includes, str(source), "-o", str(program)], check=True)
    found = subprocess.run([program], capture_output=True, text=True, check=True).stdout
    wanted = [
        " ".join(
            [
                f"{name} {kind.itemsize}",
                *(f"{f}:{kind.fields[f][1]}+{kind.fields[f][0].itemsize}" for f in kind.names),
            ]
        )
        for name, kind in layout.STRUCTURES.items()
    ]
    assert found.splitlines() == [*wanted, f"relu_ops {layout.FORMAT} {layout.X86_64}"]


def test_no_structure_of_the_header_is_missing() -> None:
    declared = re.findall(r"^\} (Image\w+);", (NATIVE / "image.h").read_text(), re.MULTILINE)
    assert sorted(declared) == sorted(layout.STRUCTURES)


def test_fields_leave_no_gaps() -> None:
    """What stands between fields would be written as whatever it is."""
    for name, kind in layout.STRUCTURES.items():
        sizes = [kind.fields[field][0].itemsize for field in kind.names]
        assert sum(sizes) == kind.itemsize, name
        assert [kind.fields[f][1] for f in kind.names] == np.cumsum([0, *sizes[:-1]]).tolist(), name


# ---------------------------------------------------------------- what stands in it

SCALE = np.arange(12, dtype=np.float32).reshape(3, 4)


def rich_graph() -> ir.Graph:
    """Symbols, open dimensions, an array constant, a view, a requirement, two outputs."""
    nodes = [
        helper.make_node("Mul", ["x", "scale"], ["scaled"]),
        helper.make_node("PRelu", ["scaled", "slope"], ["y"]),
        helper.make_node("Cast", ["y"], ["z"], to=TensorProto.DOUBLE),
    ]
    infos = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", None, 4]),
        helper.make_tensor_value_info("slope", TensorProto.FLOAT, ["C", 1]),
        helper.make_tensor_value_info("y", TensorProto.FLOAT, None),
        helper.make_tensor_value_info("z", TensorProto.DOUBLE, None),
    ]
    initializers = [numpy_helper.from_array(SCALE, "scale")]
    made = helper.make_graph(nodes, "rich", infos[:2], infos[2:], initializers)
    opsets = [helper.make_opsetid("", 18)]
    return frontend.import_model(helper.make_model(made, opset_imports=opsets, ir_version=8))


def test_the_header() -> None:
    content = built(rich_graph(), "x86-64-v2")
    read = Reading(content)
    header = read.header
    assert header["magic"] == b"relu_ops" and header["format"] == 2
    assert header["semantics"] == SEMANTICS_VERSION and header["size"] == len(content)
    assert header["machine"] == 1 and header["reserved"] == 0
    assert read.text(header["target"]) == "x86-64-v2"
    assert read.texts(header["requires_"]) == list(targets.parse("x86-64-v2").flags)
    assert header["code_at"] % 64 == 0 and len(read.operators) == 1


def test_the_tables_say_what_the_graph_says() -> None:
    graph = rich_graph()
    read = Reading(built(graph, name="the name"))
    (operator,) = read.operators
    assert read.text(operator["name"]) == "the name"
    symbols = read.texts(operator["symbols"])
    assert sorted(symbols) == ["C", "N"]
    numbers = {name: -2 - k for k, name in enumerate(symbols)}
    tensors = [
        (read.text(t["name"]), t["code"], t["bits"], t["rank"], read.dims(t["dims"]))
        for name in ("inputs", "outputs")
        for t in read.rows(layout.TENSOR, operator[name])
    ]

    def declared(shape: ir.Shape | None) -> tuple[int, list[int]]:
        if shape is None:
            return -1, []
        return len(shape), [-1 if d is None else numbers.get(d, d) for d in shape]

    assert tensors == [
        ("x", 2, 32, 3, [numbers["N"], -1, 4]),
        ("slope", 2, 32, 2, [numbers["C"], 1]),
        ("y", 2, 32, *declared(graph.outputs[0].shape)),
        ("z", 2, 64, *declared(graph.outputs[1].shape)),
    ]
    plain, constant = (1, 0, 0), ((1, 0, 0), -1, [3, 4])
    shape_of_x = [(plain, 0, []), constant]
    terms = [read.terms(t["terms"]) for t in read.rows(layout.TERMS, operator["output_terms"])]
    assert terms == [shape_of_x, shape_of_x]
    (required,) = read.rows(layout.REQUIREMENT, operator["requirements"])
    assert read.text(required["what"]) == graph.requirements[0].what
    assert read.terms(required["terms"]) == [(plain, 1, [])]
    assert read.terms(required["into"]) == shape_of_x
    leaves = read.rows(layout.LEAF, operator["leaves"])
    assert [int(leaf["input"]) for leaf in leaves] == [-1, 0, 1]
    assert [int(leaf["constant_at"]) for leaf in leaves[1:]] == [0, 0]
    at = int(leaves[0]["constant_at"])
    assert at % 64 == 0 and read.dims(leaves[0]["dims"]) == [3, 4]
    assert read.content[at:][: SCALE.nbytes] == SCALE.tobytes()
    assert read.rows(layout.ITEMSIZE, operator["itemsizes"]).tolist() == [4, 4, 4, 4, 8]
    assert operator["vector_bytes"] == 32 and operator["reserved"] == 0


def test_views_stand_in_the_tables() -> None:
    node = helper.make_node("DequantizeLinear", ["x", "scale"], ["y"], axis=1)
    infos = [
        helper.make_tensor_value_info("x", TensorProto.INT8, ["N", 8, 4]),
        helper.make_tensor_value_info("scale", TensorProto.FLOAT, [8]),
        helper.make_tensor_value_info("y", TensorProto.FLOAT, None),
    ]
    made = helper.make_graph([node], "channels", infos[:2], infos[2:])
    opsets = [helper.make_opsetid("", 18)]
    graph = frontend.import_model(helper.make_model(made, opset_imports=opsets, ir_version=8))
    read = Reading(built(graph))
    leaves = read.rows(layout.LEAF, read.operators[0]["leaves"])
    assert [leaf["seen"].item() for leaf in leaves] == [(1, 0, 0), (1, 1, 0)]


@pytest.mark.parametrize("graph", [rich_graph(), graph_of("add_relu")], ids=["rich", "add_relu"])
def test_the_kernels_lie_in_the_code(graph: ir.Graph) -> None:
    read = Reading(built(graph))
    kernels = read.rows(layout.KERNEL, read.operators[0]["kernels"])
    patterns = [tuple(read.rows(layout.PATTERN, kernel["patterns"]).tolist()) for kernel in kernels]
    scheduled = X86.schedule(graph, targets.parse("x86-64-v3"))
    assert patterns == [kernel.patterns for kernel in scheduled]
    assert [bool(k["stream"]) for k in kernels] == [k.stream is not None for k in scheduled]
    begin, size = int(read.header["code_at"]), int(read.header["code_size"])
    entries = [int(at) for k in kernels for at in (k["call"], k["stream"]) if at]
    assert all(at % 64 == 0 and begin <= at < begin + size for at in entries)
    assert len(set(entries)) == len(entries) and min(entries) == begin


@pytest.mark.parametrize("name", graphs.MODELS)
def test_the_runtime_reads_what_is_written(name: str) -> None:
    graph = frontend.import_model(graphs.MODELS[name]())
    opened = native.open_image("image", built(graph, "x86-64-v2", name))
    assert opened.operators == (name,) and opened.targets == ("x86-64-v2",)


# ---------------------------------------------------------------- several operators


def test_what_is_alike_is_stored_once() -> None:
    graph, target = rich_graph(), targets.parse("x86-64-v3")
    one, two = built(graph, name="first"), image.build([("first", graph), ("other", graph)], target)
    assert len(two) - len(one) <= layout.OPERATOR.itemsize + len("other") + 1 + 7
    read = Reading(two)
    first, other = read.operators
    for field in layout.OPERATOR.names:
        assert (first[field] == other[field]) == (field != "name"), field
    assert two.count(SCALE.tobytes()) == 1
    opened = native.open_image("image", two)
    assert opened.operators == ("first", "other")


def test_arrays_are_shared_where_the_code_is_not() -> None:
    graph = rich_graph()
    other = dataclasses.replace(graph, outputs=graph.outputs[:1])
    content = image.build([("a", graph), ("b", other)], targets.parse("x86-64-v3"))
    assert content.count(SCALE.tobytes()) == 1
    read = Reading(content)
    calls = [
        int(kernel["call"])
        for operator in read.operators
        for kernel in read.rows(layout.KERNEL, operator["kernels"])
    ]
    assert len(set(calls)) == len(calls) >= 4


def test_what_is_shared_is_aligned_for_each() -> None:
    made = image._Image()
    made.put(b"x", 1)
    at = made.put(b"pair", 1)
    assert at % 64 and made.put(b"pair", 1) == at
    aligned = made.put(b"pair", 64)
    assert aligned % 64 == 0 and made.content[aligned:][:4] == b"pair"
    assert made.put(b"pair", 1) == made.put(b"pair", 64) == aligned


def test_nothing_runs_between_codes() -> None:
    first, second = graph_of("relu"), graph_of("leaky_relu")
    content = image.build([("a", first), ("b", second)], targets.parse("x86-64-v3"))
    begin = int(Reading(content).header["code_at"])
    alone = Reading(built(first)).header
    end = begin + int(alone["code_size"])
    assert content[end : end + -end % 64] == b"\xcc" * (-end % 64)


def test_names_must_differ() -> None:
    graph = graph_of("relu")
    with pytest.raises(ArgumentError) as caught:
        image.build([("a", graph), ("b", graph), ("a", graph)], targets.parse("x86-64-v3"))
    assert str(caught.value) == "an image cannot hold two operators named 'a'"


def test_an_image_is_small() -> None:
    for target in LEVELS:
        assert len(built(graph_of("leaky_relu"), target)) < 4096


# ---------------------------------------------------------------- bounds


def repeated_inputs(count: int) -> ir.Graph:
    graph = graph_of("relu")
    return dataclasses.replace(graph, inputs=graph.inputs * count)


def with_outputs(count: int) -> ir.Graph:
    graph = graph_of("relu")
    return dataclasses.replace(graph, outputs=graph.outputs * count)


def with_requirements(count: int) -> ir.Graph:
    graph = rich_graph()
    return dataclasses.replace(graph, requirements=graph.requirements * count)


def with_terms(count: int) -> ir.Graph:
    graph = rich_graph()
    terms = frozenset(ir.Term(None, (k,)) for k in range(count))
    required = dataclasses.replace(graph.requirements[0], terms=terms)
    return dataclasses.replace(graph, requirements=(required,))


def with_term(term: ir.Term) -> ir.Graph:
    graph = rich_graph()
    required = dataclasses.replace(graph.requirements[0], terms=frozenset({term}))
    return dataclasses.replace(graph, requirements=(required,))


def with_shape(shape: ir.Shape) -> ir.Graph:
    graph = graph_of("relu")
    return dataclasses.replace(graph, inputs=(dataclasses.replace(graph.inputs[0], shape=shape),))


def named(name: str) -> ir.Graph:
    graph = graph_of("relu")
    return dataclasses.replace(graph, inputs=(dataclasses.replace(graph.inputs[0], name=name),))


def many_operands() -> ir.Graph:
    """As many inputs and outputs as there may be, and an array constant."""
    inputs = [helper.make_tensor_value_info(f"x{k}", 1, ["N"]) for k in range(512)]
    outputs = [helper.make_tensor_value_info(f"y{k}", 1, ["N"]) for k in range(512)]
    nodes = [helper.make_node("Mul", [f"x{k}", "s"], [f"y{k}"]) for k in range(512)]
    array = [numpy_helper.from_array(np.arange(2, dtype=np.float32), "s")]
    made = helper.make_graph(nodes, "many", inputs, outputs, array)
    opsets = [helper.make_opsetid("", 18)]
    return frontend.import_model(helper.make_model(made, opset_imports=opsets, ir_version=8))


BEYOND: dict[str, tuple[Any, str]] = {
    "inputs": (lambda: repeated_inputs(513), "op has 513 inputs; it must have at most 512"),
    "outputs": (lambda: with_outputs(513), "op has 513 outputs; it must have at most 512"),
    "operands": (
        many_operands,
        "op has 1025 inputs, outputs and array constants; it must have at most 1024",
    ),
    "requirements": (
        lambda: with_requirements(8193),
        "op has 8193 shapes that must fit into others; it must have at most 8192",
    ),
    "terms": (
        lambda: with_terms(1025),
        "op has 1025 inputs and constants that a shape depends on; it must have at most 1024",
    ),
    "dimensions of an input": (
        lambda: with_shape((None,) * 9),
        "op: input 'x' has 9 dimensions; it must have at most 8",
    ),
    "dimensions of a constant": (
        lambda: with_term(ir.Term(None, (1,) * 17)),
        "op: a constant, as it is used, has 17 dimensions; it must have at most 16",
    ),
    "dimensions of an input in a view": (
        lambda: with_term(ir.Term(0, view=ir.View(trailing=14))),
        "op: input 'x', as it is used, has 17 dimensions; it must have at most 16",
    ),
    "bytes of a name": (
        lambda: named("ü" * 32768),
        f"the name {'ü' * 60!r}... has 65536 bytes; it must have at most 65535",
    ),
}


@pytest.mark.parametrize("what", BEYOND)
def test_what_is_beyond_the_runtimes_bounds_is_refused(what: str) -> None:
    make, message = BEYOND[what]
    with pytest.raises(UnsupportedError) as caught:
        built(make())
    assert str(caught.value) == message


def test_too_many_operators() -> None:
    graph = graph_of("relu")
    made = [(f"op{k}", graph) for k in range(4097)]
    with pytest.raises(UnsupportedError) as caught:
        image.build(made, targets.parse("x86-64-v3"))
    assert str(caught.value) == "the image has 4097 operators; it must have at most 4096"


@pytest.mark.parametrize(
    ("limit", "most", "message"),
    [
        ("SYMBOLS", 1, "op has 2 names of dimensions; it must have at most 1"),
        ("FEATURES", 3, "x86-64-v3 has 16 required processor features; it must have at most 3"),
    ],
)
def test_bounds_that_are_too_large_to_reach(
    monkeypatch: pytest.MonkeyPatch, limit: str, most: int, message: str
) -> None:
    monkeypatch.setitem(native.LIMITS, limit, most)
    with pytest.raises(UnsupportedError) as caught:
        built(rich_graph())
    assert str(caught.value) == message


def test_what_a_reader_has_to_look_at_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """As often as it is named: tables are shared."""
    read = Reading(built(rich_graph()))
    read.text(read.header["target"])
    read.texts(read.header["requires_"])
    (operator,) = read.operators
    read.text(operator["name"])
    for name in ("inputs", "outputs"):
        for tensor in read.rows(layout.TENSOR, operator[name]):
            read.text(tensor["name"])
            read.dims(tensor["dims"])
    for terms in read.rows(layout.TERMS, operator["output_terms"]):
        read.terms(terms["terms"])
    for required in read.rows(layout.REQUIREMENT, operator["requirements"]):
        read.text(required["what"])
        read.terms(required["terms"])
        read.terms(required["into"])
    for leaf in read.rows(layout.LEAF, operator["leaves"]):
        read.dims(leaf["dims"])
    read.rows(layout.ITEMSIZE, operator["itemsizes"])
    for kernel in read.rows(layout.KERNEL, operator["kernels"]):
        read.rows(layout.PATTERN, kernel["patterns"])
    read.texts(operator["symbols"])
    monkeypatch.setitem(native.LIMITS, "READ", read.looked_at)
    built(rich_graph())
    monkeypatch.setitem(native.LIMITS, "READ", read.looked_at - 1)
    with pytest.raises(UnsupportedError) as caught:
        built(rich_graph())
    assert str(caught.value) == (
        f"the image has {read.looked_at} bytes of tables and names, counted as often as they are "
        f"used; it must have at most {read.looked_at - 1}"
    )


def test_the_largest_operator_is_built_and_read() -> None:
    """As many outputs as there may be, which plans had no room for once."""
    nodes = [helper.make_node("Relu", ["x"], [f"y{k}"]) for k in range(512)]
    outputs = [helper.make_tensor_value_info(f"y{k}", 1, ["N"]) for k in range(512)]
    inputs = [helper.make_tensor_value_info("x", 1, ["N"])]
    made = helper.make_graph(nodes, "many", inputs, outputs)
    opsets = [helper.make_opsetid("", 18)]
    graph = frontend.import_model(helper.make_model(made, opset_imports=opsets, ir_version=8))
    assert native.open_image("image", built(graph, "x86-64-v2")).operators == ("op",)


def test_code_too_far_from_its_constants_is_refused() -> None:
    word = Reference(8, 0, -4, PC32)
    code = Code(bytes(64), (Constants(b"abcd", 4),), (word,), (0,), b"\xcc")
    assert image._settled(code, 2**31 - 16, [4])[8:12] == (-(2**31) + 8).to_bytes(
        4, "little", signed=True
    )
    with pytest.raises(BuildError) as caught:
        image._settled(code, 2**31 + 64, [4])
    assert str(caught.value) == (
        f"the code at {2**31 + 72} of the image is {2**31 + 72} bytes from its constants; it must "
        f"be less than {2**31}\nhint: build its operators into several bundles"
    )


def test_an_image_too_large_for_its_tables_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image, "_LARGEST_IMAGE", 3000)
    with pytest.raises(BuildError) as caught:
        built(rich_graph())
    assert str(caught.value) == (
        "the image has more than 3000 bytes, which its tables cannot count\n"
        "hint: build its operators into several bundles"
    )


# ---------------------------------------------------------------- the same bytes

SOME = [
    (name, target)
    for name in ("relu", "leaky_relu", "scale_bias_leaky_relu", "prelu")
    for target in LEVELS
]


def test_three_threads_at_once_give_the_same_bytes() -> None:
    made = [(graph_of(name), target) for name, target in SOME]
    one_after_another = [built(graph, target) for graph, target in made]
    with ThreadPoolExecutor(3) as pool:
        rounds = [list(pool.map(lambda one: built(*one), made)) for _ in range(2)]
    assert rounds == [one_after_another] * 2


MAKERS: dict[str, Callable[[ir.Graph, targets.Target], Any]] = {
    "image": lambda graph, target: image.build([("op", graph)], target),
    "object": lambda graph, target: codegen.object_code(
        X86.schedule(graph, target), X86.options(target)
    ),
    "sources": X86.sources,
    "cuda": lambda graph, _: codegen_cuda.sources(graph),
}


@pytest.mark.parametrize("what", MAKERS)
def test_code_generation_waits_for_another_thread(what: str) -> None:
    """LLVM's options are the process's: what a lucky round of the test above does not show."""
    graph, target, done = graph_of("relu"), targets.parse("x86-64-v3"), threading.Event()
    thread = threading.Thread(target=lambda: (MAKERS[what](graph, target), done.set()))
    with LOCK:
        thread.start()
        assert not done.wait(0.5)
    assert done.wait(30)
    thread.join()


BUILD = """
import hashlib, sys
from relu_ops import graphs, targets
from relu_ops.compiler import frontend, image
graph = frontend.import_model(graphs.MODELS["scale_bias_leaky_relu"]())
for target in targets.CPU_TARGETS:
    print(hashlib.sha256(image.build([("op", graph)], targets.parse(target))).hexdigest())
"""


def test_processes_give_the_same_bytes(tmp_path: Path) -> None:
    """Whatever the folder, the locale, the tools that are named, and without any of them."""
    found = set()
    for number, locale in enumerate(("C", "C.UTF-8")):
        folder = tmp_path / f"somewhere{'-else' * number}"
        folder.mkdir()
        environment = {
            **{name: os.environ[name] for name in ("PYTHONPATH", "HOME") if name in os.environ},
            **{"PYTHONHASHSEED": str(number), "TMPDIR": str(folder), "LC_ALL": locale},
            **{"PATH": str(folder), "CC": "false", "CXX": "false", "CFLAGS": "-pg", "LD": "false"},
        }
        command = [sys.executable, "-c", BUILD]
        found.add(subprocess.run(command, env=environment, cwd=folder, capture_output=True).stdout)
        assert list(folder.iterdir()) == []
    (digests,) = found
    assert len(digests.split()) == len(LEVELS)


FORK = """
import os, threading
from relu_ops import graphs, targets
from relu_ops.compiler import frontend, image
graph, target = frontend.import_model(graphs.relu()), targets.parse("x86-64-v3")
wanted = image.build([("op", graph)], target)
finished = threading.Event()

def build():
    while not finished.is_set():
        assert image.build([("op", graph)], target) == wanted

thread = threading.Thread(target=build)
thread.start()
for _ in range(10):
    child = os.fork()
    if child == 0:
        os._exit(0 if image.build([("op", graph)], target) == wanted else 1)
    _, status = os.waitpid(child, 0)
    print(os.waitstatus_to_exitcode(status))
finished.set()
thread.join()
"""


def test_a_child_forked_during_a_build_can_build() -> None:
    done = subprocess.run(
        [sys.executable, "-c", FORK], capture_output=True, text=True, timeout=180, check=True
    )
    assert done.stdout.split() == ["0"] * 10


# ---------------------------------------------------------------- where there is little


def test_without_memory_files_a_temporary_one_serves(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    wanted = built(graph_of("relu"))

    def refused(*_: Any) -> int:
        raise PermissionError("refused")

    monkeypatch.setattr(os, "memfd_create", refused)
    assert built(graph_of("relu")) == wanted
    monkeypatch.delattr(os, "memfd_create")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert built(graph_of("relu")) == wanted
    assert list(tmp_path.iterdir()) == []


def test_without_proc_a_temporary_file_serves(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = built(graph_of("relu"))
    monkeypatch.setattr(codegen, "_path_of", lambda file: f"/no/proc/{file.fileno()}")
    before = len(os.listdir("/proc/self/fd"))
    assert built(graph_of("relu")) == wanted
    assert len(os.listdir("/proc/self/fd")) == before


def test_without_any_place_for_a_file_the_error_says_so(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delattr(os, "memfd_create")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "none"))
    with pytest.raises(BuildError) as caught:
        built(graph_of("relu"))
    pattern = (
        r"compiling needs a temporary file, and there is no place for one: \[Errno 2\] No such "
        r"file or directory: '.*'\nhint: set TMPDIR to a folder that can be written"
    )
    assert re.fullmatch(pattern, str(caught.value))


# ---------------------------------------------------------------- called


class Called:
    """An image that is mapped, whose kernels are called without the runtime."""

    KERNEL = ctypes.CFUNCTYPE(None, *[ctypes.c_void_p] * 3, *[ctypes.c_int64] * 2)

    def __init__(self, content: bytes) -> None:
        self.read = Reading(content)
        file = os.memfd_create("image")
        os.write(file, content)
        prot = mmap.PROT_READ | mmap.PROT_EXEC
        self.memory = np.frombuffer(mmap.mmap(file, len(content), mmap.MAP_PRIVATE, prot), np.uint8)
        os.close(file)
        (operator,) = self.read.operators
        self.kernels = self.read.rows(layout.KERNEL, operator["kernels"])
        self.leaves = self.read.rows(layout.LEAF, operator["leaves"])

    def patterns(self, kernel: Any) -> list[int]:
        return self.read.rows(layout.PATTERN, kernel["patterns"]).tolist()

    def run(self, at: int, arrays: Sequence[np.ndarray], rows: int, n: int) -> None:
        """Call the function at a place, on arrays of (rows, n) elements."""
        strides = [[s // a.itemsize for s in a.strides] for a in arrays]
        data = np.array([a.ctypes.data for a in arrays], np.int64)
        of_rows, inner = (np.array([s[d] for s in strides], np.int64) for d in (0, 1))
        tables = [table.ctypes.data for table in (data, of_rows, inner)]
        self.KERNEL(self.memory.ctypes.data + int(at))(*tables, rows, n)


def lying(array: np.ndarray, pattern: int, aligned: bool) -> np.ndarray:
    """The same elements, as a pattern says: contiguous in each row, one for all of it, or apart."""
    rows, n = array.shape
    if pattern == REPEATED:
        return np.broadcast_to(array[:, :1].copy(), array.shape)
    if pattern == CONTIGUOUS:
        room = -(-(n + 1) * array.itemsize // 64) * 64 // array.itemsize
        memory = np.zeros((rows * room + 65) * array.itemsize, np.uint8)
        skipped = -memory.ctypes.data % 64 + (0 if aligned else array.itemsize)
        flat = memory[skipped:][: rows * room * array.itemsize].view(array.dtype)
        seen = flat.reshape(rows, room)[:, :n]
    else:
        seen = np.zeros((n, rows * 2 + 1), array.dtype)[::-1, ::2][:, :rows].T
    seen[...] = array
    return seen


CALLED = {
    "relu": graph_of("relu"),
    "leaky_relu_bfloat16": graph_of("leaky_relu", dtype="bfloat16"),
    "leaky_relu_float16": graph_of("leaky_relu", alpha=0.1, dtype="float16"),
    "relu_int8": graph_of("relu", dtype="int8"),
    "add_relu": graph_of("add_relu"),
    "prelu_float64": graph_of("prelu", dtype="float64"),
    "quantized_leaky_relu": graph_of("quantized_leaky_relu"),
}


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", CALLED)
def test_kernels_give_the_bits_of_the_reference(name: str, target: str) -> None:
    graph = CALLED[name]
    called = Called(built(graph, target))
    draw = np.random.default_rng(0)
    dtypes = [leaf.dtype for leaf in leaves_of(graph)]
    out_dtype = DTYPES[graph.values[graph.outputs[0].value].dtype].numpy
    streamed = 0
    for kernel in called.kernels:
        *patterns, out_pattern = called.patterns(kernel)
        for place, aligned in ((kernel["call"], False), (kernel["stream"], True)):
            for rows, n in ((1, 1), (3, 7), (2, 64), (1, 131), (3, 200)) if place else ():
                inputs = [
                    lying(random_array(draw, dtype, (rows, n)), pattern, aligned)
                    for dtype, pattern in zip(dtypes, patterns, strict=True)
                ]
                with np.errstate(all="ignore"):
                    (wanted,) = reference.evaluate(graph, inputs)
                out = lying(np.zeros((rows, n), out_dtype), out_pattern, aligned)
                called.run(place, [*inputs, out], rows, n)
                assert_same_bits(out, wanted, f"{name} {patterns} {rows} x {n}", inputs)
                streamed += aligned
    assert streamed or (name, target) == ("leaky_relu_float16", "x86-64-v2")


@pytest.mark.parametrize("target", TARGETS)
def test_kernels_read_constants_that_lie_in_the_image(target: str) -> None:
    called = Called(built(rich_graph(), target))
    draw = np.random.default_rng(0)
    x, slope = random_array(draw, "float32", (3, 4)), random_array(draw, "float32", (3, 1))
    at = int(called.leaves[0]["constant_at"])
    constant = called.memory[at:][: SCALE.nbytes].view(np.float32).reshape(3, 4)
    with np.errstate(all="ignore"):
        y, z = (one[0] for one in reference.evaluate(rich_graph(), [x[None], slope]))
    outs = np.zeros_like(y), np.zeros_like(z)
    last = called.kernels[-1]
    called.run(last["call"], [constant, x, np.broadcast_to(slope, x.shape), *outs], 3, 4)
    assert_same_bits(outs[0], y, "y")
    assert_same_bits(outs[1], z, "z")
