"""The CUDA kernels, run on the CPU thread by thread: arithmetic, indices, tails, launches.

See simulated_cuda.py. What only a device can show is in scripts/check_cuda.py.
"""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import simulated_cuda
from cases import FLOATS, SPECIALS, assert_same_bits, fresh, random_array, run
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import helper, numpy_helper
from test_random_graphs import Case, check_against_reference
from test_random_graphs import cases as random_cases

from relu_ops import graphs, reference
from relu_ops.compiler import codegen, frontend
from relu_ops.runtime import library
from relu_ops.runtime.operator import Operator
from relu_ops.semantics import DTYPES
from relu_ops.verification import verify

MODELS = sorted((Path(__file__).parents[1] / "models").glob("*.onnx"))
PLAIN = "x86-64-v2"
"""The name under which a simulated library is loaded."""

_SETTINGS: dict[str, Any] = {
    "deadline": None,
    "derandomize": True,
    "database": None,
    "suppress_health_check": list(HealthCheck),
}


@pytest.fixture(autouse=True)
def _simulated(monkeypatch: pytest.MonkeyPatch) -> None:
    simulated_cuda.admit(monkeypatch)
    monkeypatch.setattr(codegen, "build_x86", simulated_cuda.build_instead_of_x86)


@pytest.mark.parametrize("path", MODELS, ids=lambda path: path.stem)
def test_every_model_passes_the_whole_check(path: Path) -> None:
    report = verify(path, target=PLAIN)
    assert report.ok, str(report)


@pytest.mark.parametrize("name", ["relu_float16", "relu_bfloat16", "leaky_relu_bfloat16"])
def test_every_pattern_of_16_bits(name: str) -> None:
    report = verify(
        Path(__file__).parents[1] / f"models/{name}.onnx", target=PLAIN, exhaustive=True
    )
    assert report.ok, str(report)


@settings(max_examples=40, **_SETTINGS)
@given(case=random_cases())
def test_random_graphs(case: Case) -> None:
    check_against_reference(case, PLAIN)


def test_products_of_bfloat16_are_rounded_once() -> None:
    """Every bfloat16 times some: subnormal results are where float32 would round twice."""
    values = [helper.make_tensor_value_info(name, 16, None) for name in ("a", "b", "y")]
    nodes = [helper.make_node("Mul", ["a", "b"], ["y"])]
    graph = helper.make_graph(nodes, "product", values[:2], values[2:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    operator = fresh(model, PLAIN)
    every = np.arange(1 << 16, dtype=np.uint16).view(DTYPES["bfloat16"].numpy)
    for other in every[::1009]:
        check(operator, every, other.reshape(1))


# ---------------------------------------------------------------- launches


@pytest.fixture(scope="module")
def operators() -> Iterator[dict[str, Operator]]:
    with pytest.MonkeyPatch.context() as patch:
        simulated_cuda.admit(patch)
        patch.setattr(codegen, "build_x86", simulated_cuda.build_instead_of_x86)
        yield {dtype: fresh(graphs.add_relu(dtype=dtype), PLAIN) for dtype in ("float32", "int8")}


def check(operator: Operator, *inputs: np.ndarray, out: np.ndarray | None = None) -> None:
    model = frontend.read_model(operator.bundle.contents["model.onnx"])
    plain = [np.array(x) for x in inputs]
    (wanted,) = reference.evaluate(frontend.import_model(model), plain)
    got = operator(*inputs, out=out)
    assert_same_bits(np.asarray(got), wanted, f"shapes {[x.shape for x in inputs]}", plain)


LAYOUTS = [
    # Rows that a block takes whole, in part, and many at once; one and several planes.
    *[((rows, n), (n,)) for rows in (1, 2, 3, 37) for n in (1, 3, 4, 5, 127, 128, 129, 513)],
    *[((rows, 1), (1, n)) for rows in (1, 300) for n in (3, 64, 1100)],
    *[((4096,), (1,)), ((40_001,), (40_001,)), ((33, 4100), (4100,)), ((5000, 8), (8,))],
    *[((2, 3, 5), (3, 1)), ((7, 16, 64), (16, 1)), ((3, 4, 5, 6), (4, 1, 6))],
    # More dimensions than one launch has.
    ((2, 3, 2, 3, 2, 3), (2, 1, 2, 1, 2, 1)),
    ((3, 2, 2, 2, 3, 2, 2, 3), (3, 1, 2, 1, 3, 1, 2, 1)),
    # More planes and more rows than a grid has.
    ((66_000, 2, 3), (1, 2, 1)),
    ((131_100, 1), (1, 300)),
]


@pytest.mark.parametrize("dtype", ["float32", "int8"])
@pytest.mark.parametrize("shapes", LAYOUTS, ids=str)
def test_broadcasts(
    operators: dict[str, Operator], shapes: tuple[tuple[int, ...], ...], dtype: str
) -> None:
    rng = np.random.default_rng(1)
    check(operators[dtype], *(random_array(rng, dtype, shape) for shape in shapes))


@settings(max_examples=300, **_SETTINGS)
@given(data=st.data())
def test_any_strides(operators: dict[str, Operator], data: st.DataObject) -> None:
    """Permuted, reversed, sliced, broadcast and shifted views, in place or not."""
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    dtype = data.draw(st.sampled_from(["float32", "int8"]))
    shape = tuple(data.draw(st.lists(st.integers(1, 9), min_size=0, max_size=5)))
    a, b = (_view(data, rng, dtype, shape) for _ in range(2))
    out = None
    if data.draw(st.booleans()):
        out = data.draw(st.sampled_from([_view(data, rng, dtype, shape, writable=True), a]))
        if not out.flags.writeable or 0 in out.strides:
            out = None
    if out is a:
        model_inputs = (a.copy(), b)
        wanted = operators[dtype](*model_inputs)
        assert_same_bits(operators[dtype](a, b, out=a), wanted, "in place")
    else:
        check(operators[dtype], a, b, out=out)


def _view(
    data: st.DataObject,
    rng: np.random.Generator,
    dtype: str,
    shape: tuple[int, ...],
    *,
    writable: bool = False,
) -> np.ndarray:
    order = data.draw(st.permutations(range(len(shape))))
    steps = [data.draw(st.sampled_from([1, 1, 1, 2, -1])) for _ in shape]
    offset = data.draw(st.integers(0, 5))
    stored = [shape[d] * abs(steps[d]) for d in order]
    flat = random_array(rng, dtype, [offset + int(np.prod(stored, dtype=int))])
    view = flat[offset:].reshape(stored).transpose(np.argsort(order) if shape else ())
    view = view[tuple(slice(None, None, step) for step in steps)]
    view = view[tuple(slice(0, extent) for extent in shape)]
    if shape and not writable and data.draw(st.booleans()):
        return np.broadcast_to(view[..., :1], shape)
    return view


@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_all_offsets_and_sizes_around_a_chunk(operators: dict[str, Operator], dtype: str) -> None:
    """Between pages that must not be touched, and with nothing written beside the output."""
    itemsize = DTYPES[dtype].itemsize
    rng = np.random.default_rng(2)
    with Guarded() as inputs, Guarded() as outputs:
        for size in (*range(70), 255, 256, 257, 1023, 1024, 1025, 4095):
            for offset in range(17 if size < 70 else 3):
                at_end = bool((size + offset) % 2)
                x = inputs.array(dtype, size, offset, at_end=at_end)
                x[...] = random_array(rng, dtype, [size])
                shared = offset % 3 == 0  # else the operands are misaligned each in its way
                y = outputs.array(dtype, size, offset if shared else 0, at_end=at_end)
                outputs.fill(0x5A)
                check(operators[dtype], x, x, out=y)
                used = y.ctypes.data - outputs.start
                kept = outputs.bytes().copy()
                kept[used : used + size * itemsize] = 0x5A
                assert (kept == 0x5A).all(), f"size {size}, offset {offset}"


class Guarded:
    """Memory between two pages that cannot be read or written."""

    PAGES = 5

    def __enter__(self) -> Guarded:
        self.memory = mmap.mmap(-1, (self.PAGES + 2) * mmap.PAGESIZE)
        self.base = ctypes.addressof(ctypes.c_char.from_buffer(self.memory))
        self.start = self.base + mmap.PAGESIZE
        self.size = self.PAGES * mmap.PAGESIZE
        self._protect(0)
        return self

    def __exit__(self, *_: object) -> None:
        self._protect(3)

    def _protect(self, rights: int) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        for page in (self.base, self.start + self.size):
            assert libc.mprotect(ctypes.c_void_p(page), mmap.PAGESIZE, rights) == 0

    def bytes(self) -> np.ndarray:
        return np.ctypeslib.as_array((ctypes.c_uint8 * self.size).from_address(self.start))

    def fill(self, value: int) -> None:
        self.bytes()[...] = value

    def array(self, dtype: str, size: int, offset: int, *, at_end: bool) -> np.ndarray:
        """An array `offset` elements from the front, or from the back, of the memory."""
        itemsize = DTYPES[dtype].itemsize
        begin = self.size - (size + offset) * itemsize if at_end else offset * itemsize
        return self.bytes()[begin : begin + size * itemsize].view(DTYPES[dtype].numpy)


@pytest.mark.parametrize("dtype", FLOATS)
def test_special_values_at_every_lane(dtype: str) -> None:
    """A value gives the same bits wherever it lies: in a chunk, at its ends, in a tail."""
    operator = fresh(graphs.leaky_relu(alpha=0.1, dtype=dtype), PLAIN)
    values = SPECIALS[dtype]
    for shift in range(9):
        check(operator, np.concatenate([values[:1].repeat(shift), values]))


def test_constants_and_outputs_of_different_shapes() -> None:
    """Array constants lie on the device; an operand that a pass does not reach has an element."""
    scale, wide = np.float32([[2], [-3]]), np.arange(5, dtype=np.float32)
    nodes = [
        helper.make_node("Mul", ["x", "scale"], ["scaled"]),
        helper.make_node("Relu", ["scaled"], ["y"]),
        helper.make_node("Add", ["x", "wide"], ["z"]),
    ]
    values = [helper.make_tensor_value_info(n, 1, None) for n in ("x", "y", "z")]
    held = [numpy_helper.from_array(a, n) for a, n in ((scale, "scale"), (wide, "wide"))]
    graph = helper.make_graph(nodes, "two", values[:1], values[1:], held)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    operator = fresh(model, PLAIN)
    for shape in ((5,), (1,), (2, 1), (2, 5), (4, 1, 1), (3, 2, 5)):
        x = random_array(np.random.default_rng(3), "float32", shape)
        wanted = reference.evaluate(frontend.import_model(model), [x])
        for got, want in zip(run(operator, [x]), wanted, strict=True):
            assert_same_bits(got, want, str(shape), [x])


def test_one_launch_is_enough_for_up_to_five_dimensions(monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[ctypes.CDLL] = []
    load = library._load_from_memory
    monkeypatch.setattr(
        library, "_load_from_memory", lambda content: opened.append(load(content)) or opened[-1]
    )
    operator = fresh(graphs.maxout(pieces=3), PLAIN)
    count = opened[0].simulated_launches
    shapes = {
        ((100_000,),) * 3: 1,
        ((300, 512), (512,), (300, 1)): 1,
        ((3, 4, 5, 6, 7), (4, 1, 6, 1), (3, 1, 5, 1, 7)): 1,
        ((2, 3, 2, 3, 2, 3), (2, 1, 2, 1, 2, 1), (3, 2, 3, 2, 3)): 2,
        ((0, 5), (5,), (1,)): 0,
    }
    for arrays, launches in shapes.items():
        before = count()
        check(operator, *(random_array(np.random.default_rng(4), "float32", a) for a in arrays))
        assert count() - before == launches, arrays


def test_a_misaligned_element_is_refused() -> None:
    """A device faults on it, and takes the whole context along."""
    operator = fresh(graphs.leaky_relu(alpha=0.3), PLAIN)
    memory = np.zeros(21, np.uint8)
    x = memory[1:].view(np.float32)
    with pytest.raises(ValueError, match="x: lies between the places where its elements may begin"):
        operator._library.call_views(describe([x, np.zeros(5, np.float32)]).ctypes.data)


def describe(arrays: list[np.ndarray]) -> np.ndarray:
    from relu_ops.runtime.arrays import describe as described

    return described(arrays, [a.dtype.name for a in arrays])
