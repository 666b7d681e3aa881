"""What onnxruntime makes of a model: sessions, and the graph that it executes.

What it fuses by itself is found by asking it: a node stands where its own optimized graph still has
an operator of that name that makes that value. Relu after Conv does not, and taking it out of there
made a network slower.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import NodeProto

from relu_ops.compiler.frontend.scope import normal_domain
from relu_ops.contract.semantics import DTYPES
from relu_ops.errors import ModelError, require
from relu_ops.interop import onnxruntime as door
from relu_ops.partitioning.graphs import Scope, Value, subgraphs, value_of

Source = Path | bytes
"""A model as onnxruntime takes it: a file, whose external data lie beside it, or all its bytes."""

_PROVIDERS = ["CPUExecutionProvider"]
_CAST = "InsertedPrecisionFreeCast_"
"""How onnxruntime names a float16 value that it computes in float32."""

_EXTERNAL_FROM = "1024"


def options_of(threads: int | None = None, *, timed: bool = False) -> Any:
    """Session options, silent and with so many threads; None for onnxruntime's default.

    Sessions that nobody times leave weights where they lie: packed ones would be copies of them.
    """
    require("onnxruntime", "verify", "relu_ops.partition")
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    if threads is not None:
        options.intra_op_num_threads = threads
    if not timed:
        options.add_session_config_entry("session.disable_prepacking", "1")
    return options


def session_of(source: Source, options: Any) -> Any:
    """A session on the CPU.

    Raises:
        ModelError: onnxruntime refuses the model.
    """
    import onnxruntime

    content = source if isinstance(source, bytes) else str(source)
    try:
        return onnxruntime.InferenceSession(content, options, providers=_PROVIDERS)
    except Exception as error:
        shown = str(error).strip().partition("\n")[0]
        raise ModelError(f"onnxruntime refuses the model: {shown}") from error


def run(session: Any, feeds: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """A run of a session: its outputs by their names.

    Raises:
        ModelError: onnxruntime does not run it on these arrays.
    """
    names = [info.name for info in session.get_outputs()]
    try:
        return dict(zip(names, session.run(None, dict(feeds)), strict=True))
    except Exception as error:
        shown = " ".join(str(error).split())
        raise ModelError(
            f"onnxruntime does not run the model on these inputs: {shown}",
            "give inputs that it takes (--input x.npz), or extents (--dim NAME=EXTENT)",
        ) from error


@dataclass
class Executed:
    """The graph that onnxruntime executes.

    Attributes:
        makers: What operator makes a value, by the value's name.
        values: What is known of values.
    """

    makers: dict[str, str] = field(default_factory=dict)
    values: dict[str, Value] = field(default_factory=dict)

    def stands(self, scope: Scope, node: NodeProto) -> bool:
        """Whether a node is executed as it is. Of a function each call must have it."""
        name = node.output[0]
        if scope.results is None:
            return self._made_by(name) == node.op_type
        # Inlined, a value has its function's name and a number before its own; a result has the
        # name that the call gives it.
        is_result = name in scope.results
        names = scope.results[name] if is_result else [name]
        made = [
            op
            for known, op in self.makers.items()
            if any(known.endswith(f"_{one}") or (is_result and known == one) for one in names)
        ]
        return bool(made) and all(op == node.op_type for op in made)

    def _made_by(self, name: str) -> str | None:
        return self.makers.get(f"{_CAST}{name}") or self.makers.get(name)


def executed(source: Source) -> Executed:
    """Ask onnxruntime for its optimized graph of a model."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "optimized.onnx"
        options = options_of()
        options.optimized_model_filepath = str(path)
        if isinstance(source, Path):  # it may have more weights than a file can hold
            prefix = "session.optimized_model_external_initializers"
            options.add_session_config_entry(f"{prefix}_file_name", "weights")
            options.add_session_config_entry(f"{prefix}_min_size_in_bytes", _EXTERNAL_FROM)
            (Path(folder) / "weights").symlink_to(os.devnull)  # nobody reads them
        session_of(source, options)
        proto = onnx.load(path, load_external_data=False)
    found = Executed()
    for graph in _graphs(proto.graph):
        for node in graph.node:
            kind = (
                node.op_type if not normal_domain(node.domain) else f"{node.domain}.{node.op_type}"
            )
            found.makers.update(dict.fromkeys(filter(None, node.output), kind))
        for info in (*graph.value_info, *graph.input, *graph.output):
            found.values.setdefault(info.name, value_of(info))
    return found


def _graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    yield graph
    for node in graph.node:
        for _, inner in subgraphs(node):
            yield from _graphs(inner)


def with_bundle(options: Any, bundle: Path, digest: str) -> Any:
    """The options, with the operators of a bundle."""
    door.register(options, bundle, digest)
    return options


# ---------------------------------------------------------------------------------------------
# Arrays


def random_inputs(
    session: Any, dims: Mapping[str, int], given: Mapping[str, np.ndarray], seed: int
) -> dict[str, np.ndarray]:
    """Arrays for every input of a session: those given, random ones for the others.

    Extents that are not known are 1, unless `dims` names them.
    """
    rng = np.random.default_rng(seed)
    feeds = {}
    for info in session.get_inputs():
        if info.name in given:
            feeds[info.name] = given[info.name]
        else:
            feeds[info.name] = _random(rng, info, dims)
    return feeds


def _random(
    rng: Any, info: Any, dims: Mapping[str, int], shape: Sequence[int] | None = None
) -> np.ndarray:
    names = {f"tensor({row.onnx_name})": row for row in DTYPES.values()}
    if info.type not in names or info.type == "tensor(bfloat16)":
        raise ModelError(
            f"input {info.name} is a {info.type}: no random one is made", "pass it: --input x.npz"
        )
    row = names[info.type]
    if shape is None:
        shape = [d if isinstance(d, int) else dims.get(str(d), 1) for d in info.shape]
    if row.is_float:
        return rng.standard_normal(shape).astype(row.numpy)
    if row.kind == "bool":
        return rng.integers(0, 2, shape).astype(bool)
    return rng.integers(0, 8, shape).astype(row.numpy)


def random_arrays(session: Any, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """Random arrays of some shapes for every input of a session."""
    rng = np.random.default_rng(0)
    return {info.name: _random(rng, info, {}, shapes[info.name]) for info in session.get_inputs()}


def shapes_of(
    proto: onnx.ModelProto, folder: Path, wanted: set[str], feeds: Mapping[str, np.ndarray]
) -> dict[str, tuple[int, ...]]:
    """The shapes that values of a graph have in a run; external data are in the folder."""
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    outputs = {info.name for info in copy.graph.output}
    made = {name for node in copy.graph.node for name in node.output}
    shown = sorted((wanted & made) - outputs)
    copy.graph.output.extend(onnx.ValueInfoProto(name=name) for name in shown)
    with exposed(copy, folder) as path:
        found = run(session_of(path, options_of()), feeds) | dict(feeds)
    shapes = {name: np.shape(found[name]) for name in wanted if name in found}
    weights = {t.name: tuple(t.dims) for t in proto.graph.initializer if t.name in wanted}
    return {**weights, **shapes}


@contextlib.contextmanager
def exposed(proto: onnx.ModelProto, folder: Path) -> Iterator[Path]:
    """A changed model as a file, for now, where its external data are."""
    path = folder / "exposed.onnx"
    path.write_bytes(proto.SerializeToString())
    try:
        yield path
    finally:
        path.unlink()
