"""Ten thousand random arrays: the right bits, or one of a closed set of errors, and no crash.

Each batch runs in a child process whose exit code is checked.
"""

from __future__ import annotations

import json
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import children
import numpy as np
import onnx
import onnx.parser
import pytest
from cases import TARGETS, compiled, same_bits

from relu_ops import compiler, graphs
from relu_ops.errors import ArgumentError


def parsed(text: str) -> onnx.ModelProto:
    return onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : 18]>\n{text}')


GRAPHS: dict[str, onnx.ModelProto] = {
    "relu": graphs.relu(),
    "relu_int8": graphs.relu("int8"),
    "leaky_relu_float16": graphs.leaky_relu(alpha=0.1, dtype="float16"),
    "relu_bfloat16": graphs.relu("bfloat16"),
    "relu_float64": graphs.relu("float64"),
    "maxout": graphs.maxout(3),
    "add_fixed_rank": parsed("g (float[N,M] a, float[N,M] b) => (float[N,M] y) { y = Add(a, b) }"),
    "prelu": graphs.prelu(),
}
"""What is called: one shape or broadcasting, every element size, one to three inputs."""

_CALLER = """
import collections, faulthandler, json, sys, warnings
faulthandler.enable()
import numpy as np, layouts, relu_ops
from relu_ops.contract import ir, reference
from relu_ops.compiler import frontend
from relu_ops.errors import ArgumentError, ArgumentTypeError
from relu_ops.runtime.threads import Settings, configure
from relu_ops.contract.semantics import DTYPES
from cases import same_bits
warnings.simplefilter("ignore")

folder, target, first, count = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
names = sys.argv[5:]
operators = {n: relu_ops.load(f"{folder}/{n}.bundle", target=target) for n in names}
graphs = {n: frontend.import_model(op.bundle.model(op.name)) for n, op in operators.items()}
outcomes = collections.Counter()

def fail(seed, name, what):
    sys.exit(f"seed {seed}, {name}: {what}")

def reference_of(graph, case):
    '''The result, or why there is none.'''
    arrays = []
    for tensor, x in zip(graph.inputs, case.inputs):
        if layouts.dtype_of(x.dtype) is not DTYPES[tensor.dtype]:
            return "dtype"
        arrays.append(np.array(x, x.dtype.newbyteorder("="), subok=False, copy=True))
        if tensor.shape is not None and x.ndim != len(tensor.shape):
            return "shape"
    try:
        for requirement in graph.requirements:
            into = reference_shape(requirement.into, arrays)
            if not ir.fits_into(reference_shape(requirement.terms, arrays), into):
                return "shape"
        with np.errstate(all="ignore"):
            return reference.evaluate(graph, arrays)[0]
    except ValueError:
        return "shape"

def reference_shape(terms, arrays):
    return ir.broadcast_terms(terms, [x.shape for x in arrays])

def why_not_out(case, expected):
    '''Why an output must be refused, or None; "itself" where it overlaps with itself.'''
    out = case.out
    if not isinstance(out, np.ndarray):
        return None if out is None else "kind"
    if out.dtype != expected.dtype or not out.dtype.isnative:
        return "dtype"
    if out.shape != expected.shape:
        return "shape"
    if not out.flags.writeable:
        return "read-only"
    if any(d > 1 and s == 0 for d, s in zip(out.shape, out.strides)) and out.size:
        return "may be refused"  # where it is not, the last element written stays
    return None

def overlaps_itself(out):
    if out.size < 2:
        return False
    marks = np.zeros(out.size, np.int64)
    low = np.lib.array_utils.byte_bounds(out)[0]
    places = np.zeros(out.shape, np.int64) + out.__array_interface__["data"][0] - low
    for axis, (extent, stride) in enumerate(zip(out.shape, out.strides)):
        steps = np.arange(extent) * stride
        places += steps.reshape([-1 if a == axis else 1 for a in range(out.ndim)])
    places = np.sort(places.ravel())
    return bool((np.diff(places) < out.itemsize).any())

for seed in range(first, first + count):
    name = names[seed % len(names)]
    op, graph = operators[name], graphs[name]
    threads, parallel, stream = [(1, 1 << 62, 1 << 62), (3, 0, 1 << 62), (2, 0, 0)][seed // 7 % 3]
    configure(Settings(threads, parallel, stream))
    same_shape = graph.inputs[0].shape is not None
    case = layouts.case(seed, [DTYPES[t.dtype].numpy for t in graph.inputs], same_shape)
    expected = reference_of(graph, case)
    refusal = expected if isinstance(expected, str) else why_not_out(case, expected)
    memory = None if case.memory is None else case.memory.copy()
    before = [np.array(x, subok=False, copy=True) for x in case.inputs]
    bind = seed % 5 == 0
    try:
        if bind:
            call = op.bind(*case.inputs, out=case.out)
            call()
            result = call.out
        else:
            result = op(*case.inputs, out=case.out)
    except (ArgumentError, ArgumentTypeError) as error:
        if refusal is None and not (bind and "bound" in str(error) or "misaligned" in str(error)):
            fail(seed, name, f"refused without need: {error}")
        outcomes[type(error).__name__] += 1
        if memory is not None and not (memory == case.memory).all():
            fail(seed, name, "refused, and written all the same")
        continue
    except Exception as error:
        fail(seed, name, f"{type(error).__name__}: {error}")
    if refusal not in (None, "may be refused"):
        fail(seed, name, f"not refused: {refusal}")
    if case.out is not None and result is not case.out:
        fail(seed, name, "returned something else than out")
    if case.out is not None and overlaps_itself(np.asarray(case.out)):
        outcomes["into an output that overlaps itself"] += 1
    elif not same_bits(np.array(result, subok=False), expected):
        fail(seed, name, "wrong bits")
    else:
        outcomes["right"] += 1
    if memory is not None:
        out = case.out
        start = out.__array_interface__["data"][0] - case.memory.ctypes.data
        kept = layouts.view_of(memory, start, out.shape, out.strides, out.dtype)
        kept[...] = out  # nothing else may have changed
        if not (memory == case.memory).all():
            fail(seed, name, "written outside of out")
    for x, y in zip(case.inputs, before):
        apart = case.out is None or not np.may_share_memory(x, case.out)
        if apart and np.array(x, subok=False).tobytes() != y.tobytes():
            fail(seed, name, "an input was changed")
print(json.dumps(outcomes))
"""


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundles")
    for name, model in GRAPHS.items():
        compiler.build(model, list(TARGETS), folder / f"{name}.bundle")
    return folder


def call(folder: Path, target: str, first: int, count: int) -> Counter[str]:
    """Make calls in a child; return how many had which outcome."""
    done = children.run(_CALLER, folder, target, first, count, *GRAPHS, seconds=600)
    assert (done.returncode, done.stderr) == (0, "")
    return Counter(json.loads(done.stdout))


def check(outcomes: Counter[str], count: int) -> None:
    assert outcomes.total() == count
    assert set(outcomes) <= {
        "right",
        "into an output that overlaps itself",
        "ArgumentError",
        "ArgumentTypeError",
    }
    # The draw must neither be so wild that everything is refused, nor so tame that nothing is.
    assert outcomes["right"] > count / 2
    assert min(outcomes["ArgumentError"], outcomes["ArgumentTypeError"]) > count / 50


@pytest.mark.parametrize("target", TARGETS)
def test_random_layouts(bundles: Path, target: str) -> None:
    check(call(bundles, target, 0, 800), 800)


@pytest.mark.exhaustive
@pytest.mark.parametrize("target", TARGETS)
def test_ten_thousand_random_layouts(bundles: Path, target: str) -> None:
    with ThreadPoolExecutor(2) as pool:
        batches = pool.map(lambda first: call(bundles, target, first, 1000), range(0, 10_000, 1000))
        outcomes = sum(batches, Counter[str]())
    check(outcomes, 10_000)
    print(f"{target}: {dict(outcomes)}")


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("threads", [1, 3])
def test_large_transposed_inputs(target: str, threads: int) -> None:
    """Read in blocks: sizes around those of a block, and dimensions left of the two innermost."""
    draw = np.random.default_rng(0)
    add, relu = compiled(graphs.add_relu(), target), compiled(graphs.relu("int8"), target)
    for shape in ((129, 517), (32, 1024), (1031, 16), (3, 65, 130), (2, 3, 70, 81), (17, 4001)):
        for order in (range(len(shape))[::-1], [*range(len(shape) - 2), -1, -2]):
            across = draw.standard_normal(shape, "f").transpose(order)
            along = draw.standard_normal(across.shape, "f")
            out = np.empty(across.shape, "f")
            for a, b in ((across, along), (along, across), (across, across), (across[::-1], along)):
                expected = np.where(a + b < 0, 0, a + b)
                assert same_bits(add(a, b, out=out, threads=threads), expected)
            bytes_ = draw.integers(-128, 128, (3, *shape), "i1").transpose(
                0, *(k % len(shape) + 1 for k in order)
            )
            assert (relu(bytes_, threads=threads) == np.maximum(bytes_, 0)).all()


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "int32"])
def test_long_rows_that_share_a_vector(dtype: str, threads: int, target: str) -> None:
    """Read in blocks: rows and columns around those of one, outputs at every alignment."""
    draw = np.random.default_rng(0)
    op = compiled(graphs.prelu(dtype=dtype), target)
    for rows, columns in ((2, 16 << 10), (65, 8 << 10), (130, 8191), (7, 20_001), (3, 100_003)):
        x, slope = (
            (draw.standard_normal(shape) * 4).astype(dtype) for shape in ((rows, columns), columns)
        )
        expected = np.where(x < 0, slope * x, x)
        for beyond in (0, 1, 4, 5):
            memory = np.empty(rows * columns + beyond, dtype)
            out = memory[beyond:].reshape(rows, columns)
            assert same_bits(op(x, slope, out=out, threads=threads), expected)
        assert same_bits(op(x, slope, out=x, threads=threads), expected)


def test_an_output_larger_than_any_memory() -> None:
    op = compiled(graphs.maxout(2, dtype="int8"), TARGETS[-1])
    a, b = (np.broadcast_to(np.int8(1), shape) for shape in ((2**40, 1), (1, 2**40)))
    for call in (op, op.bind):
        with pytest.raises(ArgumentError) as caught:
            call(a, b)
        message = f"the output y of shape {(2**40, 2**40)} is larger than any memory"
        assert str(caught.value) == message
