"""The core library as a library of custom operators of onnxruntime.

What is run in a session stands in onnxruntime_host.py, so that other releases of onnxruntime, each
in an environment of its own, run the same.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import children
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, parser

import relu_ops
from relu_ops import config, graphs
from relu_ops.bundle import store as bundles
from relu_ops.compiler.frontend.scope import ELEMENT_TYPES
from relu_ops.contract.semantics import DTYPES

onnxruntime = pytest.importorskip("onnxruntime")

HOST = Path(__file__).parent / "onnxruntime_host.py"
LIBRARY = config.values()["library"]

RELEASES = ("1.17.3", "1.20.1", "1.23.2", "1.26.0", "1.29.0", "1.32.0")
"""The oldest whose interface is enough, one of every few since, and the newest that there is."""

CODES = {name: code for code, name in ELEMENT_TYPES.items()}


def every_dtype(name: str) -> onnx.ModelProto:
    """max(x, y), or x xor y: an operator that a dtype has."""
    op = "Xor" if name == "bool" else "Max"
    code = CODES[name]
    io = [helper.make_tensor_value_info(n, code, ["n"]) for n in ("x", "y")]
    out = helper.make_tensor_value_info("z", code, ["n"])
    graph = helper.make_graph([helper.make_node(op, ["x", "y"], ["z"])], "g", io, [out])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)


def many_operands(inputs: int, outputs: int) -> onnx.ModelProto:
    """Outputs k: the largest of the first inputs, times k + 1; more arrays than lie on a stack."""
    names = [f"x{k}" for k in range(inputs)]
    lines = ["m = Max(" + ", ".join(names) + ")"]
    for k in range(outputs):
        lines += [f"c{k} = Constant <value_float = {k + 1}.0> ()", f"y{k} = Mul(m, c{k})"]
    formals = ", ".join(f"float[n] {name}" for name in names)
    results = ", ".join(f"float[n] y{k}" for k in range(outputs))
    return parser.parse_model(
        f'<ir_version: 8, opset_import: ["": 18]> many ({formals}) => ({results}) '
        "{ " + "\n".join(lines) + " }"
    )


SEVERAL_SHAPES = parser.parse_model(
    """<ir_version: 8, opset_import: ["": 18]>
several (float[n, m] x, float[m] row) => (float[n, m] y, float[m] z) {
y = Add(x, row)
z = Relu(row) }"""
)
TWICE = parser.parse_model(
    """<ir_version: 8, opset_import: ["": 18]>
twice (float[n, m] x) => (float[n, m] z) {
y = Abs(x)
z = Sub(y, x) }"""
)
OPERATORS = {
    "leaky": graphs.leaky_relu(alpha=0.5),
    "scaled": graphs.scale_bias_leaky_relu(alpha=0.25, channels=64),
    "prelu": graphs.prelu(),
    "many": many_operands(20, 4),
    "several": SEVERAL_SHAPES,
    "twice": TWICE,
    **{f"{name}_": every_dtype(name) for name in DTYPES},
}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    path = tmp_path_factory.mktemp("host") / "operators.bundle"
    return path, relu_ops.build(OPERATORS, ["x86-64-v2", "native"], path)


def node(bundle: tuple[Path, str], name: str, inputs: Sequence[str], outputs: Sequence[str]):
    return helper.make_node(f"{name}_{bundle[1][:12]}", inputs, outputs, domain="relu_ops")


@dataclass
class Case:
    """A model for a session, and what it must give."""

    name: str
    nodes: list[onnx.NodeProto]
    feeds: dict[str, np.ndarray]
    want: dict[str, np.ndarray]
    shapes: dict[str, list[str | int]] = field(default_factory=dict)
    initializers: dict[str, np.ndarray] = field(default_factory=dict)

    def model(self) -> onnx.ModelProto:
        def info(name: str, x: np.ndarray, shape: list[str | int] | None) -> onnx.ValueInfoProto:
            code = helper.np_dtype_to_tensor_dtype(x.dtype)
            return helper.make_tensor_value_info(name, code, shape)

        inputs = [info(n, x, self.shapes.get(n, [None] * x.ndim)) for n, x in self.feeds.items()]
        outputs = [info(n, x, None) for n, x in self.want.items()]
        weights = [onnx.numpy_helper.from_array(x, n) for n, x in self.initializers.items()]
        graph = helper.make_graph(self.nodes, self.name, inputs, outputs, weights)
        opsets = [helper.make_opsetid("", 18), helper.make_opsetid("relu_ops", 1)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=8)

    def write(self, folder: Path) -> None:
        onnx.save(self.model(), folder / f"{self.name}.onnx")
        arrays = {f"in_{n}": x for n, x in self.feeds.items()}
        arrays |= {f"out_{k}": x for k, x in enumerate(self.want.values())}
        np.savez(folder / f"{self.name}.npz", **arrays)


def operator(bundle: tuple[Path, str], name: str) -> relu_ops.Operator:
    return relu_ops.load(bundle[0], digest=bundle[1], name=name)


def random(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def make_cases(bundle: tuple[Path, str]) -> list[Case]:
    leaky = operator(bundle, "leaky")
    cases = [
        Case(
            "large",
            [node(bundle, "leaky", ["x"], ["y"])],
            {"x": random(0, 700, 1031)},
            {"y": leaky(random(0, 700, 1031))},
        ),
        Case(
            "in_place",
            [
                helper.make_node("Neg", ["x"], ["a"]),
                node(bundle, "leaky", ["a"], ["b"]),
                node(bundle, "twice", ["b"], ["c"]),
                helper.make_node("Neg", ["c"], ["y"]),
            ],
            {"x": random(1, 64, 257)},
            {"y": -operator(bundle, "twice")(leaky(-random(1, 64, 257)))},
            {"x": ["rows", "columns"]},
        ),
    ]
    for extents in ((), (0,), (1,), (2, 0, 3), (1, 2, 1, 3, 1), (2,) * 9):
        x = random(2, *extents)
        name = "rank_" + "_".join(map(str, extents))
        cases.append(Case(name, [node(bundle, "leaky", ["x"], ["y"])], {"x": x}, {"y": leaky(x)}))
    x, scale, bias = random(3, 33, 64), random(4, 64), random(5, 64)
    cases.append(
        Case(
            "weights",
            [node(bundle, "scaled", ["x", "s", "b"], ["y"])],
            {"x": x},
            {"y": operator(bundle, "scaled")(x, scale, bias)},
            {"x": ["rows", 64]},
            {"s": scale, "b": bias},
        )
    )
    many = {f"x{k}": random(10 + k, 300) for k in range(20)}
    results = operator(bundle, "many")(*many.values())
    wanted = {f"y{k}": y for k, y in enumerate(results)}
    cases.append(Case("many", [node(bundle, "many", list(many), list(wanted))], many, wanted))
    x, row = random(6, 5, 7), random(7, 7)
    y, z = operator(bundle, "several")(x, row)
    feeds, wanted = {"x": x, "row": row}, {"y": y, "z": z}
    cases.append(
        Case("several", [node(bundle, "several", ["x", "row"], ["y", "z"])], feeds, wanted)
    )
    return cases + [dtype_case(bundle, name) for name in DTYPES]


def dtype_case(bundle: tuple[Path, str], name: str) -> Case:
    """bfloat16 comes and goes by way of float32: NumPy files have none."""
    rng = np.random.default_rng(8)
    dtype = DTYPES[name].numpy
    bits = rng.integers(0, 256, (2, 4096 * dtype.itemsize), np.uint8)
    x, y = (bits & 1).astype(bool) if name == "bool" else bits.view(dtype)
    z = operator(bundle, f"{name}_")(x, y)
    if name != "bfloat16":
        nodes = [node(bundle, f"{name}_", ["x", "y"], ["z"])]
        return Case(name, nodes, {"x": x, "y": y}, {"z": z})
    nodes = [
        helper.make_node("Cast", ["x"], ["a"], to=TensorProto.BFLOAT16),
        helper.make_node("Cast", ["y"], ["b"], to=TensorProto.BFLOAT16),
        node(bundle, "bfloat16_", ["a", "b"], ["c"]),
        helper.make_node("Cast", ["c"], ["z"], to=TensorProto.FLOAT),
    ]
    feeds = {"x": x.astype(np.float32), "y": y.astype(np.float32)}
    return Case(name, nodes, feeds, {"z": z.astype(np.float32)})


@pytest.fixture(scope="module")
def folder(bundle: tuple[Path, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("cases")
    for case in make_cases(bundle):
        case.write(made)
    return made


def host(python: str, bundle: tuple[Path, str], folder: Path) -> list[str]:
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run(
        [python, str(HOST), LIBRARY, str(bundle[0]), str(folder)],
        capture_output=True,
        text=True,
        timeout=300,
        env=environment,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.splitlines()


def check_lines(lines: list[str], bundle: tuple[Path, str], folder: Path) -> None:
    names = sorted(path.stem for path in folder.glob("*.onnx"))
    assert [line for line in lines if line.startswith("case")] == [f"case {n}" for n in names]
    refusals = [line for line in lines if line.startswith("refused")]
    assert "has no entry relu_ops.bundles, which names the bundles to open; add it" in refusals[0]
    assert "/nowhere: no bundle can be read there" in refusals[1]
    assert f"SHA256SUMS has the digest {bundle[1]}; it must have 0000" in refusals[2]
    assert "relu_ops.bundles names no bundle" in refusals[3]


def test_a_session_runs_a_bundle(bundle: tuple[Path, str], folder: Path) -> None:
    lines = host(sys.executable, bundle, folder)
    check_lines(lines, bundle, folder)
    assert lines[-1] == f"done {onnxruntime.__version__}"


def environment_with(release: str, folder: Path) -> Path:
    """The Python of a new environment that has some release of onnxruntime."""
    python = folder / "bin" / "python"
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    packages = [f"onnxruntime=={release}", "numpy<2" if release < "1.19" else "numpy"]
    installed = subprocess.run(
        [str(python), "-m", "pip", "install", "-q", *packages], capture_output=True, text=True
    )
    if installed.returncode:
        pytest.skip(f"onnxruntime {release} cannot be installed: {installed.stderr[-300:]}")
    return python


@pytest.mark.exhaustive
@pytest.mark.parametrize("release", RELEASES)
def test_releases(release: str, bundle: tuple[Path, str], folder: Path, tmp_path: Path) -> None:
    python = environment_with(release, tmp_path)
    lines = host(str(python), bundle, folder)
    check_lines(lines, bundle, folder)
    assert lines[-1] == f"done {release}"


@pytest.mark.exhaustive
def test_an_older_release_is_refused(
    bundle: tuple[Path, str], folder: Path, tmp_path: Path
) -> None:
    python = environment_with("1.16.3", tmp_path)
    with pytest.raises(AssertionError, match=r"relu_ops: needs onnxruntime 1\.17 or newer"):
        host(str(python), bundle, folder)


# ---------------------------------------------------------------------------------------------
# What only one release is asked


def session(model: onnx.ModelProto, bundles_: str, **settings: object):
    options = onnxruntime.SessionOptions()
    for name, value in settings.items():
        setattr(options, name, value)
    options.add_session_config_entry("relu_ops.bundles", bundles_)
    options.register_custom_ops_library(LIBRARY)
    return onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


@pytest.mark.parametrize(
    ("x", "row", "y"),
    [
        (["n", "m"], ["m"], ["n", "m"]),
        ([4, "m"], ["m"], [4, "m"]),
        ([4, 1], [7], [4, 7]),
        (["n", "k"], [7], ["n", 7]),
        ([4, "k"], [1], [4, "k"]),
    ],
)
def test_shapes_are_inferred(bundle: tuple[Path, str], x, row, y) -> None:
    """As onnx infers them for the operator's own nodes."""
    case = Case(
        "shapes",
        [node(bundle, "several", ["x", "row"], ["y", "z"])],
        {"x": random(0, 1, 1), "row": random(0, 1)},
        {"y": random(0, 1), "z": random(0, 1)},
        {"x": x, "row": row},
    )
    model = case.model()
    for output in model.graph.output:
        output.type.tensor_type.ClearField("shape")
    found = session(model, str(bundle[0])).get_outputs()
    assert [out.shape for out in found] == [y, row]


def test_dimensions_that_are_not_known_are_not_taken_for_equal(bundle: tuple[Path, str]) -> None:
    case = Case(
        "unknown",
        [node(bundle, "leaky", ["x"], ["y"]), node(bundle, "leaky", ["y"], ["z"])],
        {"x": random(0, 1, 1)},
        {"z": random(0, 1)},
        {"x": [None, None]},
    )
    model = case.model()
    model.graph.output[0].type.tensor_type.ClearField("shape")
    (found,) = session(model, str(bundle[0])).get_outputs()
    names = [re.fullmatch(r"relu_ops_unknown_\d+", str(dim)) for dim in found.shape]
    assert len(names) == 2 and all(names) and len(set(found.shape)) == 2


def test_an_array_without_a_shape_is_no_single_number(bundle: tuple[Path, str]) -> None:
    """What comes after it would be refused: a single number has no axis 1."""
    nodes = [
        node(bundle, "leaky", ["x"], ["a"]),
        helper.make_node("Concat", ["a", "a"], ["y"], axis=1),
    ]
    model = Case("any", nodes, {"x": random(0, 2)}, {"y": random(0)}).model()
    model.graph.input[0].type.tensor_type.ClearField("shape")
    model.graph.output[0].type.tensor_type.ClearField("shape")
    (y,) = session(model, str(bundle[0])).run(None, {"x": random(0, 2, 3)})
    assert y.shape == (2, 6)


def test_a_wrong_shape_is_a_sentence(bundle: tuple[Path, str]) -> None:
    case = Case(
        "wrong",
        [node(bundle, "scaled", ["x", "s", "b"], ["y"])],
        {"x": random(0, 2, 64), "s": random(0, 64), "b": random(0, 64)},
        {"y": random(0, 2)},
    )
    one = session(case.model(), str(bundle[0]), log_severity_level=4)
    with pytest.raises(Exception, match=r"scaled: x\.shape must be \(rows, 64\) \(not \(2, 65\)\)"):
        one.run(None, {**case.feeds, "x": random(0, 2, 65)})
    with pytest.raises(Exception, match=r"leaky: x has 17 dimensions; at most 16 are supported"):
        deep = Case("deep", [node(bundle, "leaky", ["x"], ["y"])], {}, {"y": random(0)})
        deep.feeds = {"x": random(0, *[1] * 17)}
        deep_session = session(deep.model(), str(bundle[0]), log_severity_level=4)
        deep_session.run(None, deep.feeds)


def test_two_bundles_never_meet(bundle: tuple[Path, str], tmp_path: Path) -> None:
    """Two operators of one name, in one session, and one bundle named twice."""
    other = tmp_path / "other.bundle"
    digest = relu_ops.build({"leaky": graphs.relu()}, ["native"], other)
    case = Case(
        "both",
        [
            node(bundle, "leaky", ["x"], ["y"]),
            node((other, digest), "leaky", ["x"], ["z"]),
        ],
        {"x": np.float32([-2, 4])},
        {"y": np.float32([0]), "z": np.float32([0])},
    )
    listed = f"{bundle[0]}#{bundle[1]}\n{other}\n{bundle[0]}"
    y, z = session(case.model(), listed).run(None, case.feeds)
    assert (y.tolist(), z.tolist()) == ([-1, 4], [0, 4])


def test_a_session_uses_its_own_threads(bundle: tuple[Path, str], tmp_path: Path) -> None:
    """Its profile says what each of them did; ours are as many as before."""
    case = Case(
        "threads",
        [node(bundle, "leaky", ["x"], ["y"])],
        {"x": random(0, 1 << 22)},
        {"y": random(0)},
    )
    one = session(
        case.model(),
        str(bundle[0]),
        intra_op_num_threads=2,
        enable_profiling=True,
        profile_file_prefix=str(tmp_path / "profile"),
    )
    before = len(os.listdir("/proc/self/task"))
    for _ in range(20):
        one.run(None, case.feeds)
    assert len(os.listdir("/proc/self/task")) == before
    profile = Path(one.end_profiling()).read_text()
    runs = re.findall(r'"sub_threads": \{[^}]*"num_run": (\d+)', profile)
    assert runs and sum(map(int, runs)) > 0


def test_files_of_a_bundle_are_let_go(bundle: tuple[Path, str]) -> None:
    """A session holds mappings, no descriptor."""
    before = len(os.listdir("/proc/self/fd"))
    case = Case(
        "files", [node(bundle, "leaky", ["x"], ["y"])], {"x": random(0, 2)}, {"y": random(0)}
    )
    sessions = [session(case.model(), str(bundle[0])) for _ in range(5)]
    assert len(os.listdir("/proc/self/fd")) == before and sessions
    assert bundles.read(bundle[0]).digest == bundle[1]


IN_PLACE = """
import re, sys
import numpy as np, onnxruntime

def most_memory():
    with open("/proc/self/status") as status:
        return int(re.search(r"VmHWM:\\s+(\\d+) kB", status.read())[1])

library, bundle, path = sys.argv[1:]
options = onnxruntime.SessionOptions()
options.enable_cpu_mem_arena = False
options.add_session_config_entry("relu_ops.bundles", bundle)
options.register_custom_ops_library(library)
session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
x, y = (np.full(1 << 24, value, np.float32) for value in (-1, 0))
binding = session.io_binding()
binding.bind_cpu_input("x", x)
binding.bind_output("y", "cpu", 0, np.float32, y.shape, y.ctypes.data)
before = most_memory()
session.run_with_iobinding(binding)
assert y[0] == y[-1] == -1
print(most_memory() - before)
"""


def test_a_value_that_nothing_else_needs_is_overwritten(
    bundle: tuple[Path, str], tmp_path: Path
) -> None:
    """Of x, a, b and y, the host allocates a alone: 64 MiB."""
    nodes = [
        helper.make_node("Neg", ["x"], ["a"]),
        node(bundle, "leaky", ["a"], ["b"]),
        helper.make_node("Neg", ["b"], ["y"]),
    ]
    shapes: dict[str, list[str | int]] = {"x": [1 << 24]}
    case = Case("in_place", nodes, {"x": random(0, 1)}, {"y": random(0, 1)}, shapes)
    onnx.save(case.model(), tmp_path / "in_place.onnx")
    done = children.run(IN_PLACE, LIBRARY, bundle[0], tmp_path / "in_place.onnx")
    assert done.returncode == 0, done.stderr
    assert 60_000 < int(done.stdout) < 90_000  # KiB
