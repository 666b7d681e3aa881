"""relu_ops inside programs of JAX: operators with derivatives, for jit, grad, vmap and export.

An operator is a primitive of JAX. XLA calls it as a foreign function, by the interface whose header
is in jaxlib: nothing else has to be installed (native/python_xla.c). What JAX is told are the rules
of the primitive; its derivatives are graphs in their turn (`derivable`).

JAX may call it in parallel. On the CPU alone: elsewhere it has no lowering, and JAX says so.
"""

from __future__ import annotations

import functools
import hashlib
import os
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
from jax._src import dispatch
from jax.experimental.custom_partitioning import custom_partitioning
from jax.interpreters import ad, batching, mlir

from relu_ops.contract.semantics import DTYPES
from relu_ops.errors import ArgumentError, ArgumentTypeError, counted
from relu_ops.interop.derivable import Derivable, content_of
from relu_ops.native import _python as native

if TYPE_CHECKING:
    from relu_ops.compiler.frontend import Model
    from relu_ops.runtime.operator import Operator

__all__ = ["Wrapped", "leaky_relu", "relu", "wrap"]

TARGET = "relu_ops"
"""What XLA calls the foreign function; `jax.export` wants it named (see docs/jax.md)."""


def relu(x: Any) -> jax.Array:
    """Compute 0 where x < 0, else x.

    Args:
        x: An array of float16, bfloat16, float32, float64 or int8 to int64.

    Returns:
        An array of the shape and dtype of x.

    >>> relu(jnp.array([-1.5, 2.0], jnp.float32))
    Array([0., 2.], dtype=float32)
    """
    x = jnp.asarray(x)
    return _standard("relu", x.dtype.name, None)(x)


def leaky_relu(x: Any, negative_slope: float = 0.01) -> jax.Array:
    """Compute negative_slope * x where x < 0, else x.

    Its derivative at 0 is the slope; that of `jax.nn.leaky_relu` is 1.

    Args:
        x: An array of float16, bfloat16, float32 or float64.
        negative_slope: The slope below zero, a number of Python; rounded to float32, then to the
            dtype of x. Each is compiled once.

    Returns:
        An array of the shape and dtype of x.

    >>> leaky_relu(jnp.array([-2.0, 3.0], jnp.float32), 0.5)
    Array([-1.,  3.], dtype=float32)
    """
    x = jnp.asarray(x)
    return _standard("leaky_relu", x.dtype.name, float(negative_slope))(x)


@functools.cache
def _standard(graph: str, dtype: str, slope: float | None) -> Wrapped:
    from relu_ops import graphs

    if slope is None:
        return wrap(graphs.relu(dtype))
    return wrap(graphs.leaky_relu(slope, dtype))


def wrap(
    model: Model | Operator, *, name: str | None = None, straight_through: bool = False
) -> Wrapped:
    """Make a function of JAX arrays, with derivatives, of any graph.

    Args:
        model: A model, as for `relu_ops.compile`; the path of a bundle; or an operator.
        name: Which operator, of a bundle that holds several.
        straight_through: As for `relu_ops.graphs.gradient`: let gradients through quantized chains.

    Returns:
        A callable: arrays in, one for each input of the graph, and an array out, or a tuple.

    Raises:
        MissingDependencyError: onnx, or for a model TVM, is not installed.
        ModelError: The model is not valid ONNX; as `UnsupportedError` if it is, but out of scope.
        BundleError: The bundle is missing, damaged, or holds no such operator.

    >>> from relu_ops import graphs
    >>> chain = wrap(graphs.scale_bias_leaky_relu(alpha=0.5))
    >>> ones = jnp.ones(2, jnp.float32)
    >>> jax.grad(lambda x: chain(x, ones, ones).sum())(jnp.array([[-4.0, 1.0]], jnp.float32))
    Array([[0.5, 1. ]], dtype=float32)
    """
    content, operator = content_of(model, name)
    return Wrapped.of(content, straight_through, operator)


class Wrapped(Derivable):
    """A graph as a function of JAX arrays; see `wrap`.

    Attributes:
        name: The name of the graph.
        number: By which XLA's foreign function finds the operator: the same in every process.
    """

    without_gradient = "jax.lax.stop_gradient({})"
    broadcast = staticmethod(jnp.broadcast_shapes)

    def __init__(
        self,
        content: bytes,
        straight_through: bool,
        operator: Operator | None,
        is_derivative: bool,
    ) -> None:
        super().__init__(content, straight_through, operator, is_derivative)
        self.name = self.__name__ = self.graph.name
        digest = hashlib.sha256(content).digest()
        self.number = int.from_bytes(digest[:8], "little", signed=True)

    def __call__(self, *inputs: Any) -> Any:
        """Compute.

        Raises:
            ArgumentTypeError: There are too many or too few arrays, or one is of another dtype.
            ArgumentError: Shapes do not fit, or an input's derivative is wanted and has none.
        """
        results = _PRIMITIVE.bind(*map(jnp.asarray, self._checked(inputs)), wrapped=self)
        return results[0] if len(results) == 1 else tuple(results)

    def __repr__(self) -> str:
        return f"<relu_ops.interop.jax.wrap of {self.name}>"

    def _checked(self, inputs: Sequence[Any]) -> Sequence[Any]:
        wanted = [one.name for one in self.graph.inputs]
        if len(inputs) != len(wanted):
            raise ArgumentTypeError(
                f"{self.name} takes {counted(len(wanted), 'array')} ({', '.join(wanted)}), "
                f"not {len(inputs)}"
            )
        return inputs

    def results(self, inputs: Sequence[Any]) -> list[jax.ShapeDtypeStruct]:
        """The shapes and dtypes of the results.

        Raises:
            ArgumentTypeError: An input is of another dtype.
            ArgumentError: Shapes do not broadcast together.
        """
        for one, x in zip(self.graph.inputs, inputs, strict=True):
            if x.dtype.name != one.dtype:
                raise ArgumentTypeError(
                    f"{self.name}: {one.name}.dtype must be {one.dtype} (not {x.dtype.name})",
                    f"convert it first, for example with {one.name}.astype({one.dtype!r})",
                )
        try:
            shapes = self.shapes([x.shape for x in inputs])
        except ValueError as error:
            raise ArgumentError(f"{self.name}: {error}") from error
        values = self.graph.values
        dtypes = [DTYPES[values[one.value].dtype].numpy for one in self.graph.outputs]
        return [jax.ShapeDtypeStruct(s, d) for s, d in zip(shapes, dtypes, strict=True)]

    def registered(self) -> np.int64:
        """The number, once the operator can be found by it."""
        native.xla_register(self.number, self.operator)
        return np.int64(self.number)


# ---------------------------------------------------------------------------------------------
# The primitive: what JAX knows of it

_PRIMITIVE = jax.extend.core.Primitive("relu_ops")
_PRIMITIVE.multiple_results = True


def _computed(*inputs: Any, wrapped: Wrapped) -> Any:
    return _jitted(wrapped)(*inputs)


@functools.cache
def _jitted(wrapped: Wrapped) -> Any:
    return jax.jit(lambda *inputs: _PRIMITIVE.bind(*inputs, wrapped=wrapped))


def _abstract(*inputs: Any, wrapped: Wrapped) -> list[Any]:
    return [jax.core.ShapedArray(one.shape, one.dtype) for one in wrapped.results(inputs)]


def _called(*inputs: Any, wrapped: Wrapped, is_sharded: bool) -> Any:
    """The foreign call: arrays of one rank, so that the same code serves batches and shards."""
    general = wrapped.any_rank()
    if general is None:
        return _foreign(wrapped, *inputs)
    results = wrapped.results(inputs)
    rank = max(x.ndim for x in inputs)
    given = [x.reshape((1,) * (rank - x.ndim) + x.shape) for x in inputs]
    call = _partitioned(general, given) if is_sharded else functools.partial(_foreign, general)
    return [y.reshape(one.shape) for y, one in zip(call(*given), results, strict=True)]


def _foreign(wrapped: Wrapped, *inputs: Any) -> Any:
    call = jax.ffi.ffi_call(TARGET, wrapped.results(inputs))
    return call(*inputs, operator=wrapped.registered())


def _partitioned(wrapped: Wrapped, inputs: Sequence[Any]) -> Any:
    """The same, which XLA may split along any dimension that is not repeated."""
    results = wrapped.results(inputs)
    whole = max((one.shape for one in results), key=np.prod)

    def factors(shape: Sequence[int], own: str) -> str:
        """One name for each dimension; another one where an array is repeated along it."""
        return " ".join(f"d{k}" if n == whole[k] else f"{own}{k}" for k, n in enumerate(shape))

    def partition(mesh: Any, arguments: Any, outputs: Any) -> Any:
        def placed(one: Any) -> Any:
            spec = [*outputs[0].sharding.spec, *(None,) * len(whole)][: len(whole)]
            kept = (s if n == m else None for s, n, m in zip(spec, one.shape, whole, strict=True))
            return jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*kept))

        lower = functools.partial(_foreign, wrapped)
        return mesh, lower, tuple(map(placed, outputs)), tuple(map(placed, arguments))

    made = custom_partitioning(lambda *given: tuple(_foreign(wrapped, *given)))
    taken = ", ".join(factors(x.shape, f"i{k}_") for k, x in enumerate(inputs))
    given = ", ".join(factors(one.shape, f"o{k}_") for k, one in enumerate(results))
    made.def_partition(partition=partition, sharding_rule=f"{taken} -> {given}")
    return made


def _lowered(context: Any, *inputs: Any, wrapped: Wrapped) -> Any:
    devices = getattr(context.module_context.axis_context, "num_devices", None) or 1
    call = functools.partial(_called, wrapped=wrapped, is_sharded=devices > 1)
    return mlir.lower_fun(call, multiple_results=True)(context, *inputs)


mlir.register_lowering(_PRIMITIVE, _lowered, platform="cpu")
# So that the lowering is told the devices, which custom_partitioning needs; JAX has no public way.
dispatch.prim_requires_devices_during_lowering.add(_PRIMITIVE)


def _tangents(primals: Sequence[Any], tangents: Sequence[Any], wrapped: Wrapped) -> Any:
    """The results and their tangents: those are linear, and may be transposed."""
    results = _PRIMITIVE.bind(*primals, wrapped=wrapped)
    names = [one.name for one in wrapped.graph.inputs]
    moving = {
        name: tangent
        for name, tangent in zip(names, tangents, strict=True)
        if type(tangent) is not ad.Zero and tangent.dtype != jax.dtypes.float0
    }
    given = wrapped.checked(list(moving))
    found: dict[int, Any] = {}
    if given:
        wrapped.check_results([y.shape for y in results])
        forward, places, reached = wrapped.forward(given)
        shapes = wrapped.iteration(given, [x.shape for x in primals])
        grown = [jnp.broadcast_to(moving[n], s) for n, s in zip(given, shapes, strict=True)]
        fed = [*primals, *(None for _ in wrapped.floats()), *grown]
        made = _PRIMITIVE.bind(*(fed[k] for k in places), wrapped=forward)
        found = dict(zip(reached, made, strict=True))
    out = [
        jnp.broadcast_to(found[k], y.shape)
        if k in found
        else ad.Zero(jax.typeof(y).to_tangent_aval())
        for k, y in enumerate(results)
    ]
    return results, out


def _transposed(cotangents: Sequence[Any], *inputs: Any, wrapped: Wrapped) -> list[Any]:
    """The gradients of what a graph is linear in, which is what has no value here."""
    names = [one.name for one in wrapped.graph.inputs]
    linear = tuple(n for n, x in zip(names, inputs, strict=True) if ad.is_undefined_primal(x))
    back, places = wrapped.backward(linear)
    floats = [cotangents[k] for k in wrapped.floats()]
    dys = [ad.instantiate_zeros(dy) for dy in floats]
    fed = [*inputs, *dys]
    made = _PRIMITIVE.bind(*(fed[k] for k in places), wrapped=back)
    found = dict(zip(linear, made, strict=True))
    return [found.get(name) for name in names]  # as large as they are: see _tangents


def _batched(inputs: Sequence[Any], dims: Sequence[Any], wrapped: Wrapped) -> Any:
    """A batch is one more dimension, before the others; where ranks are fixed, a loop."""
    size = next(x.shape[d] for x, d in zip(inputs, dims, strict=True) if d is not None)
    moved = [x if d is None else jnp.moveaxis(x, d, 0) for x, d in zip(inputs, dims, strict=True)]
    general = wrapped.any_rank()
    if general is None:
        every = [
            jnp.broadcast_to(x, (size, *x.shape)) if d is None else x
            for x, d in zip(moved, dims, strict=True)
        ]
        made = jax.lax.map(lambda row: _PRIMITIVE.bind(*row, wrapped=wrapped), tuple(every))
        return made, [0] * len(made)
    logical = [x.shape if d is None else x.shape[1:] for x, d in zip(moved, dims, strict=True)]
    rank = max(len(shape) for shape in logical)
    padded = [
        x.reshape((1 if d is None else size,) + (1,) * (rank - len(shape)) + tuple(shape))
        for x, d, shape in zip(moved, dims, logical, strict=True)
    ]
    made = _PRIMITIVE.bind(*padded, wrapped=general)
    wanted = wrapped.shapes(logical)
    shaped = [
        jnp.broadcast_to(y, (size, *y.shape[1:])).reshape((size, *shape))
        for y, shape in zip(made, wanted, strict=True)
    ]
    return shaped, [0] * len(shaped)


_PRIMITIVE.def_impl(_computed)
_PRIMITIVE.def_abstract_eval(_abstract)
ad.primitive_jvps[_PRIMITIVE] = _tangents
ad.primitive_transposes[_PRIMITIVE] = _transposed
batching.primitive_batchers[_PRIMITIVE] = _batched


# ---------------------------------------------------------------------------------------------
# The foreign function


def _interface() -> tuple[int, int]:
    """The version of XLA's interface, as the header says that lies in jaxlib."""
    path = os.path.join(jax.ffi.include_dir(), "xla", "ffi", "api", "c_api.h")
    with open(path, encoding="utf-8") as file:
        text = file.read()
    found = [re.search(rf"#define XLA_FFI_API_{part} (\d+)", text) for part in ("MAJOR", "MINOR")]
    major, minor = (int(one[1]) if one else 0 for one in found)
    return major, minor


jax.ffi.register_ffi_target(TARGET, native.xla_handler(*_interface()), platform="cpu")
