"""Schedules a graph for a processor: which loops, which vectors, which tails.

A kernel computes a tile: `rows` rows of `n` elements, in one combination of patterns (see
patterns.py). The runtime collapses dimensions (plan.c) and chooses among the kernels (run_cpu.c).
Every kernel of every graph has the parameters of KernelCall in core.h: the number of operands is in
none of them, so that nothing has to be compiled between a plan and a kernel.

Vectors are explicit: LLVM's own vectorizer prefers 256 bits and needs a promise that buffers do
not overlap, which a call in place would break. No such promise is made here; every vector is
loaded before it is stored, so that operand and result may be the same memory.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from tvm import ir as tvm_ir
from tvm import tirx

from relu_ops.compiler import rules
from relu_ops.compiler.cpu import lookup
from relu_ops.compiler.cpu.lookup import Tables
from relu_ops.compiler.emitter import Emitter, Operand, storage_type
from relu_ops.compiler.patterns import REPEATED, STRIDED, leaves_of, pattern_sets
from relu_ops.contract import ir
from relu_ops.contract.semantics import DTYPES
from relu_ops.targets import Target

_ENOUGH_BYTES = 32
"""Bytes of a vector where nothing is widened or looked up, so that memory decides.

On v4, wider ones gain up to 12 % in the first-level cache, where everything that is read is aligned
to them, and lose up to 34 % there where it is not; beyond, they were 3 % faster to 17 % slower: on
1M float32, relu takes 94 us with 32 bytes and 92 with 64, relu_grad 154 and 163,
scale_bias_leaky_relu 97 and 109, relu on 16M 3.1 and 3.3 ms. On v2, these are two registers a turn,
which gain 7 % on relu of 1M; but one where stores are streamed: relu on 16M takes 3.1 ms with one,
3.4 with two (AMD EPYC, Zen 4, one thread, 2026-11-21).
"""

_LARGEST_UNROLLED_TAIL = 40
"""Values of a graph up to which a tail is a chain of halving vectors rather than a loop."""


@dataclass(frozen=True)
class Kernel:
    """One scheduled kernel of a graph."""

    name: str
    patterns: tuple[int, ...]
    function: Any
    stream: Any | None
    vector_bytes: int


def schedule(graph: ir.Graph, target: Target, tables: Tables) -> list[Kernel]:
    """Make every kernel of a graph for a target.

    Args:
        graph: The graph.
        target: A CPU target.
        tables: How its processor looks numbers up.
    """
    table = lookup.table_of(graph)
    return [
        _kernel(graph, target, tables, f"tile_{number}", patterns, table)
        for number, patterns in enumerate(pattern_sets(graph))
    ]


def _kernel(
    graph: ir.Graph,
    target: Target,
    tables: Tables,
    name: str,
    patterns: tuple[int, ...],
    table: np.ndarray | None,
) -> Kernel:
    """A kernel and, for one contiguous output of whole vectors, its streaming twin."""
    make = functools.partial(_Scheduler, graph, target, tables, name, patterns, table)
    plain, streaming = make(), make(stream=True)
    itemsize = DTYPES[plain.dtypes[-1]].itemsize
    # A streaming store writes around the cache, a whole vector at a time.
    can_stream = len(graph.outputs) == 1 and streaming.lanes * itemsize >= target.smallest_stream
    stream = streaming.run() if can_stream else None
    return Kernel(name, patterns, plain.run(), stream, plain.lanes * itemsize)


class _Scheduler:
    """Builds one kernel: void tile(data, row_strides, inner_strides, rows, n)."""

    def __init__(
        self,
        graph: ir.Graph,
        target: Target,
        tables: Tables,
        name: str,
        patterns: tuple[int, ...],
        table: np.ndarray | None,
        *,
        stream: bool = False,
    ) -> None:
        self.stream = stream
        self.graph = graph
        self.target = target
        self.tables = tables
        self.name = f"{name}_stream" if stream else name
        self.patterns = patterns
        self.leaves = leaves_of(graph)
        self.dtypes = [leaf.dtype for leaf in self.leaves] + [
            graph.values[output.value].dtype for output in graph.outputs
        ]
        self.strided = STRIDED in patterns
        self.table = table
        self.externs: dict[str, str] = {}
        self.buffers = [
            tirx.decl_buffer(
                (1 << 60,),
                storage_type(dtype),
                name=f"operand_{k}",
                # Operands are aligned to their element, no more: NumPy promises nothing else.
                data_alignment=DTYPES[dtype].itemsize,
            )
            for k, dtype in enumerate(self.dtypes)
        ]
        self.row_strides = [tirx.Var(f"row_stride_{k}", "int64") for k in range(len(self.dtypes))]
        self.strides = [tirx.Var(f"stride_{k}", "int64") for k in range(len(self.dtypes))]
        self.rows, self.n = tirx.Var("rows", "int64"), tirx.Var("n", "int64")
        self.row = tirx.Var("row", "int64")
        self.repeated: dict[int, Any] = {}

    def run(self) -> Any:
        """The PrimFunc."""
        row = self._strided_row() if self.strided else self._vector_row()
        data, row_strides, inner_strides = (
            tirx.Var(name, tvm_ir.PointerType(tvm_ir.PrimType("int64")))
            for name in ("data", "row_strides", "inner_strides")
        )
        entry = [*self._pointers(data), *_loaded(row_strides, self.row_strides)]
        if self.strided:
            entry += _loaded(inner_strides, self.strides)
        body: Any = tirx.SeqStmt([*entry, _loop(self.row, _int(0), self.rows, row)])
        for text in self.externs.values():
            body = tirx.AttrStmt(
                tirx.IntImm("int32", 0), "pragma_import_llvm", tvm_ir.StringImm(text), body
            )
        parameters = [data, row_strides, inner_strides, self.rows, self.n]
        function = tirx.PrimFunc(parameters, body)
        return function.with_attr("global_symbol", self.name)

    def _pointers(self, table: Any) -> list[Any]:
        """Load the operands' addresses, and declare what lies there."""
        types = [tvm_ir.PointerType(tvm_ir.PrimType(storage_type(dtype))) for dtype in self.dtypes]
        pointers = [tirx.Var(f"data_{k}", pointer) for k, pointer in enumerate(types)]
        declared = [
            tirx.DeclBuffer(buffer, data=pointer)
            for buffer, pointer in zip(self.buffers, pointers, strict=True)
        ]
        return [*_loaded(table, pointers), *declared]

    # -- rows ------------------------------------------------------------------------------

    def _strided_row(self) -> Any:
        """One element at a time, at any stride."""
        i = tirx.Var("i", "int64")
        return _loop(i, _int(0), self.n, _block(self._elements(i, 1)))

    def _vector_row(self) -> Any:
        """Whole vectors, then a tail."""
        statements = self._repeated_operands()
        lanes = self.lanes
        i, j = tirx.Var("i", "int64"), tirx.Var("j", "int64")
        vectors = tirx.shift_right(self.n, _int(lanes.bit_length() - 1))
        if lanes > 1:
            start = tirx.Mul(i, _int(lanes))
            body = _block([*self._elements(start, lanes), self._not_unrolled()])
            statements.append(_loop(i, _int(0), vectors, body))
        if len(self.graph.values) > _LARGEST_UNROLLED_TAIL or lanes == 1:
            done = tirx.Mul(vectors, _int(lanes))
            rest = tirx.Sub(self.n, done)
            element = self._elements(tirx.Add(done, j), 1)
            if len(self.repeated) == len(self.leaves):
                # The same number again and again: LLVM would call memset, which an image has not.
                element.append(self._not_unrolled())
            return _block([*statements, _loop(j, _int(0), rest, _block(element))])
        return _block(statements + self._halving_tail(lanes))

    def _not_unrolled(self) -> Any:
        """Keep LLVM from unrolling a loop.

        A loop in C for relu float32 takes 1.45 ms on 8M elements if it is unrolled by 4, as LLVM
        likes to, 1.26 if not, and the same on 1M (AMD EPYC, Zen 4, 2 threads, 2026-11-21): one load
        instruction with a stride of one vector is what the processor's prefetcher follows best.
        TVM passes no such option on to LLVM; an empty instruction that must not be duplicated does.
        """
        name = "relu_ops.not_unrolled"
        self.externs[name] = (
            f"define internal void @{name}() alwaysinline {{\n"
            '  call void asm sideeffect "", ""() noduplicate\n  ret void\n}\n'
        )
        return tirx.Evaluate(tirx.call_extern("void", name))

    def _halving_tail(self, lanes: int) -> list[Any]:
        """At most one vector of each smaller power of two: no loop for the last elements."""
        statements = []
        while lanes > 1:
            lanes //= 2
            # Where this bit of n is set, the elements above it are done.
            start = self.n & _int(-2 * lanes)
            taken = tirx.NE(self.n & _int(lanes), _int(0))
            statements.append(tirx.IfThenElse(taken, _block(self._elements(start, lanes)), None))
        return statements

    def _repeated_operands(self) -> list[Any]:
        """Load what is one element for the whole row, once per row."""
        statements: list[Any] = []
        for k, leaf in enumerate(self.leaves):
            if self.patterns[k] == REPEATED:
                storage = storage_type(leaf.dtype)
                var = tirx.Var(f"repeated_{k}", storage)
                position = tirx.Mul(self.row, self.row_strides[k])
                statements.append(tirx.Bind(var, tirx.BufferLoad(self.buffers[k], [position])))
                self.repeated[k] = var
        return statements

    # -- elements --------------------------------------------------------------------------

    @functools.cached_property
    def lanes(self) -> int:
        """Elements per vector: the widest type on the way fills a register."""
        if self.strided:
            return 1
        trial = self._emitter(1, [])
        self._lower(trial, _int(0))
        stored = max(DTYPES[d].bits for d in self.dtypes)
        vector_bytes = self.target.vector_bytes
        if trial.widest_bits <= stored and not trial.fills_registers:
            vector_bytes = min(vector_bytes, _ENOUGH_BYTES) if self.stream else _ENOUGH_BYTES
        return vector_bytes * 8 // max(trial.widest_bits, stored)

    def _emitter(self, lanes: int, statements: list[Any]) -> Emitter:
        return Emitter(
            lanes,
            statements,
            self.externs,
            native_float16=self.target.native_float16,
            cheap_select=self.target.cheap_select,
            slope_of=self.tables.slope_of,
        )

    def _elements(self, start: Any, lanes: int) -> list[Any]:
        """Compute `lanes` elements from index `start` of the row on: all loads, then all stores."""
        statements: list[Any] = []
        emitter = self._emitter(lanes, statements)
        results = self._lower(emitter, start)
        first = len(self.leaves)
        for k, result in enumerate(results, first):
            index = self._index(k, start, lanes)
            value = emitter.stored(result)
            if self.stream and lanes == self.lanes:
                element = tirx.BufferLoad(self.buffers[k], [self._index(k, start, 1)])
                storage = storage_type(result.dtype)
                stored = emitter.streamed(storage, tirx.address_of(element), value)
                statements.append(tirx.Evaluate(stored))
            else:
                statements.append(tirx.BufferStore(self.buffers[k], value, [index]))
        return statements

    def _lower(self, emitter: Emitter, start: Any) -> list[Operand]:
        if self.table is None:
            leaf = functools.partial(self._operand, emitter, start)
            return rules.lower(self.graph, emitter, leaf)
        emitter.fills_registers = True
        x = emitter.loaded(self.leaves[0].dtype, self._load(0, start, emitter.lanes))
        name, text = lookup.function_of(self.table, emitter.lanes, self.tables.schemes)
        self.externs[name] = text
        dtype = self.dtypes[-1]
        found = tirx.call_pure_extern(emitter.type(dtype), name, x.expr)
        return [Operand(dtype, emitter.bind(dtype, found))]

    def _operand(self, emitter: Emitter, start: Any, leaf: ir.Key) -> Operand:
        k = next(k for k, own in enumerate(self.leaves) if (own.value, own.view) == leaf)
        return emitter.loaded(self.leaves[k].dtype, self._load(k, start, emitter.lanes))

    def _load(self, k: int, start: Any, lanes: int) -> Any:
        if k in self.repeated:
            scalar = self.repeated[k]
            return scalar if lanes == 1 else tirx.Broadcast(scalar, lanes)
        return tirx.BufferLoad(self.buffers[k], [self._index(k, start, lanes)])

    def _index(self, k: int, start: Any, lanes: int) -> Any:
        row = tirx.Mul(self.row, self.row_strides[k])
        column = tirx.Mul(start, self.strides[k]) if self.strided else start
        index = tirx.Add(row, column)
        return index if lanes == 1 else tirx.Ramp(index, _int(1), lanes)


def _int(value: int) -> Any:
    return tirx.IntImm("int64", value)


def _loaded(table: Any, variables: Sequence[Any]) -> list[Any]:
    """Name what a table holds, 8 bytes a variable: stores may change it later, for all LLVM knows.

    These names depend on nothing but the table; with a chain of them, each built on the last, the
    time of TVM's code generator doubles with every link.
    """
    buffer = tirx.decl_buffer(
        (len(variables),), "int64", name=table.name, data=table, data_alignment=8
    )
    bound = [
        tirx.Bind(variable, tirx.reinterpret(variable.ty, tirx.BufferLoad(buffer, [_int(k)])))
        for k, variable in enumerate(variables)
    ]
    return [tirx.DeclBuffer(buffer, data=table), *bound]


def _loop(var: Any, start: Any, extent: Any, body: Any) -> Any:
    return tirx.For(var, start, extent, tirx.ForKind.SERIAL, body)


def _block(statements: Sequence[Any]) -> Any:
    return statements[0] if len(statements) == 1 else tirx.SeqStmt(list(statements))
