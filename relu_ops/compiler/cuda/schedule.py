"""Schedules a graph for CUDA: what a thread computes, and with which loads.

The work is a box of planes, rows and columns. A column is a *chunk* of a row: 16 bytes of the
widest operand, loaded and stored at once where it lies inside the row and element by element at
its ends. Chunks are aligned, wherever a row begins: elements `first` to `past` of its chunks are
those of the row, so that arrays that are all misaligned alike still get wide accesses. Several
chunks of a thread (a few columns or a few rows apart, as the host chooses) are all loaded before
any is stored, which keeps enough loads in flight for the memory. Planes are divided into up to
three dimensions, once per block; columns and rows cost no division.

The strided kernel has chunks of one element and a stride for each operand: it takes whatever the
others cannot, misaligned arrays included, and a warp still reads neighbours together.

run_cuda.c chooses the kernel and the box's shape. Nothing says that operands are apart: in place,
a thread has loaded what it overwrites, and no other thread reads it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from tvm import ir as tvm_ir
from tvm import tirx

from relu_ops.compiler import rules
from relu_ops.compiler.cuda.emitter import CudaEmitter
from relu_ops.compiler.emitter import Operand, storage_type
from relu_ops.compiler.patterns import REPEATED, STRIDED, leaves_of, pattern_sets
from relu_ops.contract import ir
from relu_ops.contract.semantics import DTYPES

THREADS = 256
"""Threads of a block: eight blocks fill a multiprocessor of 2048 threads."""

PLANE_RANK = 3
"""Dimensions that a launch has beyond rows and columns; the host loops over further ones."""

_CHUNK_BYTES = 16
"""The widest access of a thread."""

_LOADS_IN_FLIGHT = 4
"""Chunks that a thread loads before it computes. A multiprocessor of an H200 has to keep about
35 kB in flight (4.8 TB/s, about a microsecond under load, 132 of them); 2048 threads with one
chunk each have 32 kB. Not yet measured."""

_BLOCKS_AT_LEAST = "tirx.launch_bounds_min_blocks_per_sm"
"""The blocks that a multiprocessor must have room for, for kernels whose threads have more than
`_FEW_ELEMENTS`. ptxas, not asked for any, keeps to 32 registers where it can, for eight of them,
and then loads the last chunks after it has waited for the first ones and computed them: two in
flight instead of four (leaky_relu of 16 bits, relu of int8; nvcc 13.5, sm_80, 90 and 100). Asked
for one, it takes 40 to 70 registers and loads all of them first."""

_FEW_ELEMENTS = 16

_LARGEST_BODY = 1024
"""Values that a thread computes at most in straight code: bounds compile time and code size."""

SCALARS = (
    "rows",  # of a plane
    "first",  # element of its chunks that is the first of a row
    "past",  # and the one after the last
    "columns_log2",  # threads of a block along a row
    "tile_columns",  # chunks of a block along a row
    "step_columns",  # from one chunk of a thread to the next
    "tile_rows",
    "step_rows",
    "span",  # chunks of a thread
    "planes",
    "plane_extent_1",  # the inner two of the dimensions that planes are divided into
    "plane_extent_2",
)
"""Parameters after those of the operands, in the order in which run_cuda.c passes them.

Strides of rows and planes count chunks for operands that are contiguous in a row (then the code
generator sees that every chunk is aligned), else elements."""

_WIDE_SCALARS = ("rows", "first", "past")
"""Those that may exceed 32 bits."""


@dataclass(frozen=True)
class Kernel:
    """One scheduled kernel of a graph.

    Attributes:
        name: Its name in the device code.
        patterns: How it takes each operand to lie.
        function: The PrimFunc.
        lanes: Elements of a chunk.
        unroll: Chunks that a thread loads before it stores any.
    """

    name: str
    patterns: tuple[int, ...]
    function: Any
    lanes: int
    unroll: int


def schedule(graph: ir.Graph) -> list[Kernel]:
    """Make every kernel of a graph; the last one takes any strides."""
    return [
        _Scheduler(graph, f"tile_{number}", patterns).run()
        for number, patterns in enumerate(pattern_sets(graph))
    ]


class _Scheduler:
    """Builds one kernel: void tile(data..., row strides..., plane strides..., SCALARS)."""

    def __init__(self, graph: ir.Graph, name: str, patterns: tuple[int, ...]) -> None:
        self.graph = graph
        self.name = name
        self.patterns = patterns
        self.strided = STRIDED in patterns
        self.leaves = leaves_of(graph)
        self.dtypes = [leaf.dtype for leaf in self.leaves] + [
            graph.values[output.value].dtype for output in graph.outputs
        ]
        self.operands = range(len(self.dtypes))
        self.storage = [storage_type(dtype) for dtype in self.dtypes]
        self.buffers = [
            tirx.decl_buffer(
                (1 << 60,), storage, name=f"operand_{k}", data_alignment=DTYPES[dtype].itemsize
            )
            for k, (storage, dtype) in enumerate(zip(self.storage, self.dtypes, strict=True))
        ]
        self.row_strides = [tirx.Var(f"row_stride_{k}", "int64") for k in self.operands]
        self.plane_strides = [
            [tirx.Var(f"plane_stride_{k}_{d}", "int64") for d in range(PLANE_RANK)]
            for k in self.operands
        ]
        self.strides = [tirx.Var(f"stride_{k}", "int64") for k in self.operands]
        self.parameters = [
            tirx.Var(name, "int64" if name in _WIDE_SCALARS else "int32") for name in SCALARS
        ]
        # A product of two that were 32 bits wide is one instruction.
        self.scalars = {
            name: var if name in _WIDE_SCALARS else _wide(var)
            for name, var in zip(SCALARS, self.parameters, strict=True)
        }
        self.index = {
            name: tirx.Var(name, "int32")
            for name in ("blockIdx.x", "blockIdx.y", "blockIdx.z", "threadIdx.x")
        }
        self.bases: list[Any] = []

    @functools.cached_property
    def lanes(self) -> int:
        """Elements of a chunk: the widest operand fills an access, a long graph computes few."""
        if self.strided:
            return 1
        lanes = _CHUNK_BYTES // max(DTYPES[dtype].itemsize for dtype in self.dtypes)
        while lanes > 1 and lanes * len(self.graph.values) > _LARGEST_BODY:
            lanes //= 2
        return lanes

    @functools.cached_property
    def unroll(self) -> int:
        """Chunks in flight: fewer where a thread loads several operands for each."""
        loaded = sum(pattern != REPEATED for pattern in self.patterns[: len(self.leaves)])
        unroll = max(_LOADS_IN_FLIGHT // max(loaded, 1), 2)
        while unroll > 1 and unroll * self.lanes * len(self.graph.values) > _LARGEST_BODY:
            unroll //= 2
        return unroll

    def run(self) -> Kernel:
        """The kernel."""
        pointers = [
            tirx.Var(f"data_{k}", tvm_ir.PointerType(tvm_ir.PrimType(storage)))
            for k, storage in enumerate(self.storage)
        ]
        statements: list[Any] = [
            tirx.DeclBuffer(buffer, data=pointer)
            for buffer, pointer in zip(self.buffers, pointers, strict=True)
        ]
        self._place(statements)
        body = _block(statements)
        for name, extent in (
            *((f"blockIdx.{axis}", 1) for axis in "zyx"),
            ("threadIdx.x", THREADS),
        ):
            # The host sets the grid; only the number of threads is known here.
            var = self.index[name]
            bound = tirx.IterVar(tvm_ir.Range(0, extent), var, 1, name)
            body = tirx.AttrStmt(bound, "thread_extent", tirx.IntImm("int32", extent), body)
        strides = [*self.row_strides, *(s for plane in self.plane_strides for s in plane)]
        strides += self.strides if self.strided else []
        function = tirx.PrimFunc([*pointers, *strides, *self.parameters], body)
        attributes = {
            "global_symbol": self.name,
            "calling_conv": 2,  # kDeviceKernelLaunch
            "tirx.is_global_func": True,
        }
        if self.unroll * self.lanes > _FEW_ELEMENTS:
            attributes[_BLOCKS_AT_LEAST] = 1
        for key, value in attributes.items():
            function = function.with_attr(key, value)
        return Kernel(self.name, self.patterns, function, self.lanes, self.unroll)

    # -- where a thread is -----------------------------------------------------------------

    def _place(self, statements: list[Any]) -> None:
        """Find the thread's plane, row and column, then compute its chunks."""
        at = self.scalars
        thread = _wide(self.index["threadIdx.x"])
        self._find_plane(statements)
        row_thread = tirx.shift_right(thread, at["columns_log2"])
        column_thread = thread & tirx.Sub(tirx.shift_left(_int(1), at["columns_log2"]), _int(1))
        first_row = self._block_start("blockIdx.y", "tile_rows")
        first_column = self._block_start("blockIdx.x", "tile_columns")
        row = _let(statements, "row", tirx.Add(first_row, row_thread))
        column = _let(statements, "column", tirx.Add(first_column, column_thread))
        careful = self._each_chunk(row, column)
        if self.unroll == 1:
            statements.append(careful)
            return
        whole = self._whole_chunks(row, column, self.unroll)
        last = _int(self.unroll - 1)
        last_column = self._stepped(column, "step_columns", last)
        fits = [
            tirx.EQ(at["span"], _int(self.unroll)),
            tirx.LT(self._stepped(row, "step_rows", last), at["rows"]),
            tirx.GE(self._scaled(column), at["first"]),
            tirx.LE(self._scaled(tirx.Add(last_column, _int(1))), at["past"]),
        ]
        statements.append(tirx.IfThenElse(_all(fits), whole, careful))

    def _block_start(self, index: str, tile: str) -> Any:
        return tirx.Mul(_wide(self.index[index]), self.scalars[tile])

    def _find_plane(self, statements: list[Any]) -> None:
        """The offset of each operand's plane, by two divisions for a whole block."""
        plane = self.index["blockIdx.z"]
        extent_1, extent_2 = self.parameters[-2:]
        outside = tirx.Div(plane, extent_2)
        place = [
            tirx.Div(outside, extent_1),
            tirx.Mod(outside, extent_1),
            tirx.Mod(plane, extent_2),
        ]
        divided: list[Any] = []
        for k in self.operands:
            base = tirx.decl_buffer((1,), "int64", name=f"plane_{k}", scope="local")
            statements += [tirx.AllocBuffer(base), tirx.BufferStore(base, _int(0), [_int(0)])]
            offset = functools.reduce(
                tirx.Add,
                (
                    tirx.Mul(_wide(index), stride)
                    for index, stride in zip(place, self.plane_strides[k], strict=True)
                ),
            )
            divided.append(tirx.BufferStore(base, offset, [_int(0)]))
            self.bases.append(tirx.BufferLoad(base, [_int(0)]))
        several = tirx.GT(self.scalars["planes"], _int(1))
        statements.append(tirx.IfThenElse(several, _block(divided), None))

    def _stepped(self, place: Any, step: str, chunk: Any) -> Any:
        """The row or column of one of a thread's chunks."""
        return tirx.Add(place, tirx.Mul(self.scalars[step], chunk))

    def _scaled(self, chunks: Any) -> Any:
        """A number of chunks in elements."""
        return chunks if self.lanes == 1 else tirx.Mul(chunks, _int(self.lanes))

    # -- chunks ----------------------------------------------------------------------------

    def _each_chunk(self, row: Any, column: Any) -> Any:
        """Chunk after chunk, each as wide as it can."""
        at = self.scalars
        chunk = tirx.Var("chunk", "int64")
        statements: list[Any] = []
        own_row = _let(statements, "own_row", self._stepped(row, "step_rows", chunk))
        own_column = _let(statements, "own_column", self._stepped(column, "step_columns", chunk))
        start = self._scaled(own_column)
        end = self._scaled(tirx.Add(own_column, _int(1)))
        exists = tirx.LT(own_row, at["rows"])
        inside = _all([exists, tirx.GE(start, at["first"]), tirx.LE(end, at["past"])])
        if self.lanes == 1:
            whole, ends = self._element(own_row, own_column, None), None
        else:
            lane = tirx.Var("lane", "int64")
            element = tirx.Add(start, lane)
            taken = _all([exists, tirx.GE(element, at["first"]), tirx.LT(element, at["past"])])
            whole = self._whole_chunks(own_row, own_column, 1)
            # A loop, not straight code: only the ends of a row come here.
            single = tirx.IfThenElse(taken, self._element(own_row, own_column, lane), None)
            ends = _loop(lane, self.lanes, single)
        statements.append(tirx.IfThenElse(inside, whole, ends))
        return _loop(chunk, at["span"], _block(statements))

    def _whole_chunks(self, row: Any, column: Any, count: int) -> Any:
        """Load whole chunks, compute element by element, store whole chunks."""
        held = [
            tirx.decl_buffer(
                (count * self._width(k),), self.storage[k], name=f"x_{k}", scope="local"
            )
            for k in self.operands
        ]

        def move(operands: Sequence[int], body: Callable[[int, Any, Any], Any]) -> Any:
            statements: list[Any] = []
            chunk = tirx.Var("chunk", "int64")
            own_row, own_column = row, column
            if count > 1:
                own_row = self._stepped(row, "step_rows", chunk)
                own_column = self._stepped(column, "step_columns", chunk)
            for k in operands:
                place = self._place_in(statements, k, own_row, own_column)
                first = tirx.Mul(chunk, _int(self._width(k))) if count > 1 else _int(0)
                statements.append(body(k, place, _ramp(first, self._width(k))))
            moved = _block(statements)
            return moved if count == 1 else _loop(chunk, count, moved, unrolled=True)

        def load(k: int, place: Any, registers: Any) -> Any:
            value = self._load(k, place, None, self._width(k))
            return tirx.BufferStore(held[k], value, [registers])

        def store(k: int, place: Any, registers: Any) -> Any:
            value = tirx.BufferLoad(held[k], [registers])
            return self._store(k, place, None, self.lanes, value)

        lane = tirx.Var("lane", "int64")

        def register(k: int) -> Any:
            shared = self._width(k) < self.lanes
            return tirx.shift_right(lane, _int(self.lanes.bit_length() - 1)) if shared else lane

        computed = self._computed(
            lambda k: tirx.BufferLoad(held[k], [register(k)]),
            lambda k, value: tirx.BufferStore(held[k], value, [register(k)]),
        )
        return _block(
            [
                *(tirx.AllocBuffer(buffer) for buffer in held),
                *([move(self.operands[: len(self.leaves)], load)] if self.leaves else []),
                _loop(lane, count * self.lanes, computed, unrolled=True),
                move(self.operands[len(self.leaves) :], store),
            ]
        )

    def _width(self, k: int) -> int:
        """Elements of an operand in a chunk."""
        return 1 if self.patterns[k] == REPEATED else self.lanes

    def _place_in(self, statements: list[Any], k: int, row: Any, column: Any) -> Any:
        """Where a chunk lies in an operand: in chunks where it is contiguous, else in elements."""
        place = tirx.Add(self.bases[k], tirx.Mul(row, self.row_strides[k]))
        if self.strided:
            place = tirx.Add(place, tirx.Mul(column, self.strides[k]))
        elif self.patterns[k] != REPEATED:
            place = tirx.Add(place, column)
        return _let(statements, f"at_{k}", place)

    # -- elements --------------------------------------------------------------------------

    def _element(self, row: Any, column: Any, lane: Any) -> Any:
        """One element of a chunk, from memory to memory."""
        statements: list[Any] = []
        places = [self._place_in(statements, k, row, column) for k in self.operands]
        body = self._computed(
            lambda k: self._load(k, places[k], lane, 1),
            lambda k, value: self._store(k, places[k], lane, 1, value),
        )
        return _block([*statements, body])

    def _computed(self, load: Callable[[int], Any], store: Callable[[int, Any], Any]) -> Any:
        """The graph for one element: all loads, then all stores."""
        statements: list[Any] = []
        emitter = CudaEmitter(statements)

        def operand(leaf: ir.Key) -> Operand:
            k = next(k for k, own in enumerate(self.leaves) if (own.value, own.view) == leaf)
            return emitter.loaded(self.leaves[k].dtype, load(k))

        results = rules.lower(self.graph, emitter, operand)
        values = [emitter.stored(result) for result in results]
        first = len(self.leaves)
        return _block(statements + [store(k, value) for k, value in enumerate(values, first)])

    def _load(self, k: int, place: Any, lane: Any, lanes: int) -> Any:
        return tirx.BufferLoad(self.buffers[k], [self._index(k, place, lane, lanes)])

    def _store(self, k: int, place: Any, lane: Any, lanes: int, value: Any) -> Any:
        return tirx.BufferStore(self.buffers[k], value, [self._index(k, place, lane, lanes)])

    def _index(self, k: int, place: Any, lane: Any, lanes: int) -> Any:
        if self.patterns[k] == REPEATED or self.strided:
            return place
        element = self._scaled(place)
        return _ramp(element if lane is None else tirx.Add(element, lane), lanes)


def _int(value: int) -> Any:
    return tirx.IntImm("int64", value)


def _wide(expr: Any) -> Any:
    return tirx.Cast("int64", expr)


def _all(conditions: Sequence[Any]) -> Any:
    return functools.reduce(tirx.And, conditions)


def _ramp(index: Any, lanes: int) -> Any:
    return index if lanes == 1 else tirx.Ramp(index, _int(1), lanes)


def _let(statements: list[Any], name: str, expr: Any) -> Any:
    """Name an expression."""
    var = tirx.Var(name, "int64")
    statements.append(tirx.Bind(var, expr))
    return var


def _loop(var: Any, extent: Any, body: Any, *, unrolled: bool = False) -> Any:
    kind = tirx.ForKind.UNROLLED if unrolled else tirx.ForKind.SERIAL
    return tirx.For(var, _int(0), _int(extent) if isinstance(extent, int) else extent, kind, body)


def _block(statements: Sequence[Any]) -> Any:
    return statements[0] if len(statements) == 1 else tirx.SeqStmt(list(statements))
