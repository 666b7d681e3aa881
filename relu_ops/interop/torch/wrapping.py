"""`wrap`: any graph as a function of tensors, with gradient.

Derivatives are graphs too (`derivable`), compiled when they are first needed, and wrapped in their
turn: so they have derivatives themselves.
"""

from __future__ import annotations

import functools
import hashlib
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from relu_ops.errors import ArgumentError, ArgumentTypeError, counted
from relu_ops.interop.derivable import Derivable, content_of
from relu_ops.interop.torch import library

if TYPE_CHECKING:
    from relu_ops.compiler.frontend import Model
    from relu_ops.runtime.operator import Operator


def wrap(
    model: Model | Operator, *, name: str | None = None, straight_through: bool = False
) -> Wrapped:
    """Make a function of tensors, with gradient, of any graph.

    Args:
        model: A model, as for `relu_ops.compile`; the path of a bundle; or an operator.
        name: Which operator, of a bundle that holds several.
        straight_through: As for `relu_ops.graphs.gradient`: let gradients through quantized chains.

    Returns:
        A callable: tensors in, one for each input of the graph, and a tensor out, or a tuple. To
        torch it is the operator relu_ops::NAME, NAME being that of the graph.

    Raises:
        MissingDependencyError: onnx, or for a model TVM, is not installed.
        ModelError: The model is not valid ONNX; as `UnsupportedError` if it is, but out of scope.
        BundleError: The bundle is missing, damaged, or holds no such operator.
        ArgumentError: An input's name is none that torch can take, or there are no inputs.

    >>> from relu_ops import graphs
    >>> square = wrap(graphs.scale_bias_leaky_relu(alpha=0.5))
    >>> x = torch.tensor([[-4.0, 1.0]], requires_grad=True)
    >>> square(x, torch.ones(2), torch.ones(2)).sum().backward()
    >>> x.grad
    tensor([[0.5000, 1.0000]])
    """
    content, operator = content_of(model, name)
    return Wrapped.of(content, straight_through, operator)


def _free_name(graph: str, content: bytes) -> str:
    """The graph's name as torch writes names; with a digest where another graph has it."""
    name = re.sub(r"\W", "_", graph) or "graph"
    name = f"_{name}" if name[0].isdigit() else name
    if library.is_defined(name):
        name += f"_{hashlib.sha256(content).hexdigest()[:12]}"
    return name


class Wrapped(Derivable):
    """A graph as a function of tensors; see `wrap`.

    Attributes:
        name: Its name, of the operator relu_ops::name.
        model: The graph, as an ONNX model.
        op: The operator, as torch calls it.
    """

    def __init__(
        self,
        content: bytes,
        straight_through: bool,
        operator: Operator | None,
        is_derivative: bool,
    ) -> None:
        super().__init__(content, straight_through, operator, is_derivative)
        self._check_names()
        self._at_once = library.function(heeds_autocast=True)
        self._function = _function_of(self)
        self.name = self.__name__ = _free_name(self.graph.name, content)
        self.op = library.define(self.name, self._kernels())

    def __call__(self, *inputs: torch.Tensor) -> Any:
        """Compute.

        Raises:
            ArgumentTypeError: There are too many or too few tensors, or one is of another dtype.
            ArgumentError: Shapes do not fit, or an input requires a gradient and has none.
        """
        if not library.is_traced():
            results = self._at_once(*inputs)
            if library.is_known(results):
                return results
        if not library.nothing_listens(inputs):
            self._check_count(inputs)
            return self.op(*inputs)
        if library.wants_gradient(inputs):
            self._check_count(inputs)
            return self._function.apply(*inputs)
        return self._compute(*inputs)

    def __repr__(self) -> str:
        return f"<relu_ops.interop.torch.wrap of {self.graph.name}: relu_ops::{self.name}>"

    without_gradient = "{}.detach()"
    broadcast = staticmethod(torch.broadcast_shapes)

    # ---- what it is made of

    def _check_names(self) -> None:
        names = [one.name for one in self.graph.inputs]
        if not names:
            raise ArgumentError(
                f"wrap: {self.graph.name} must have an input (it has none)",
                "its results are constants: compute them once, with relu_ops.compile or load",
            )
        if any(not re.fullmatch(r"[A-Za-z_]\w*", name) for name in names):
            raise ArgumentError(
                f"wrap: torch takes no such names of inputs: {', '.join(names)}",
                "rename them to identifiers",
            )

    def _check_count(self, inputs: Sequence[Any]) -> None:
        wanted = [one.name for one in self.graph.inputs]
        if len(inputs) != len(wanted):
            raise ArgumentTypeError(
                f"{self.name} takes {counted(len(wanted), 'tensor')} ({', '.join(wanted)}), "
                f"not {len(inputs)}"
            )
        for name, x in zip(wanted, inputs, strict=True):
            if not isinstance(x, torch.Tensor):
                raise ArgumentTypeError(
                    f"{self.name}: {name} must be a tensor (not {type(x).__name__})",
                    "for example torch.as_tensor makes one",
                )

    def _kernels(self) -> library.Kernels:
        parameters = ", ".join(f"Tensor {one.name}" for one in self.graph.inputs)
        results = ", ".join("Tensor" for _ in self.graph.outputs)
        results = f"({results})" if len(self.graph.outputs) > 1 else results
        return library.Kernels(
            f"({parameters}) -> {results}",
            self._compute,
            self._fake,
            self._function.recorded,
            self._batch,
            self._cast,
            self._at_once,
        )

    def _compute(self, *inputs: torch.Tensor) -> Any:
        self._at_once.remember(self.operator)
        return self.operator(*inputs)

    def within(self, inputs: Sequence[torch.Tensor]) -> Any:
        """Compute inside of a Function: at once, or by the dispatcher, below what records."""
        if library.nothing_listens(inputs):
            return self._compute(*inputs)
        with library.below():
            return self.op(*inputs)

    def _fake(self, *inputs: torch.Tensor) -> Any:
        shapes = [tuple(x.shape) for x in inputs]
        made = [
            inputs[0].new_empty(shape, dtype=_torch_dtype(self.graph.values[o.value].dtype))
            for o, shape in zip(self.graph.outputs, self.shapes(shapes), strict=True)
        ]
        return made[0] if len(made) == 1 else tuple(made)

    def _cast(self, *inputs: torch.Tensor) -> Any:
        """Under autocast, floating inputs in the dtypes that the graph declares."""
        key = torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastCPU)
        with torch._C._ExcludeDispatchKeyGuard(key):
            return self.op(
                *(
                    x.to(_torch_dtype(one.dtype)) if x.is_floating_point() else x
                    for x, one in zip(inputs, self.graph.inputs, strict=True)
                )
            )

    def tangents(self, found: dict[int, torch.Tensor], inputs: Sequence[torch.Tensor]) -> list[Any]:
        """A tangent for each output: zero where none was found, None for an integer."""
        shapes = self.shapes([tuple(x.shape) for x in inputs])
        dtypes = [self.graph.values[one.value].dtype for one in self.graph.outputs]
        made: list[Any] = [None] * len(shapes)
        for k in self.floats():
            zero = inputs[0].new_zeros((), dtype=_torch_dtype(dtypes[k]))
            tangent: Any = found.get(k, zero)
            made[k] = tangent.expand(shapes[k]).contiguous()
        return made

    # ---- vmap

    def _batch(self, info: Any, dims: Any, *inputs: torch.Tensor) -> Any:
        moved = [x if d is None else x.movedim(d, 0) for x, d in zip(inputs, dims, strict=True)]
        logical = [
            tuple(x.shape) if d is None else tuple(x.shape[1:])
            for x, d in zip(moved, dims, strict=True)
        ]
        wanted = self.shapes(logical)
        results = self._batched(info.batch_size, dims, moved, logical)
        shaped = [
            r.expand(info.batch_size, *r.shape[1:]).reshape(info.batch_size, *shape)
            for r, shape in zip(results, wanted, strict=True)
        ]
        return (shaped[0], 0) if len(shaped) == 1 else (tuple(shaped), (0,) * len(shaped))

    def _batched(
        self,
        size: int,
        dims: Sequence[int | None],
        moved: Sequence[torch.Tensor],
        logical: Sequence[tuple[int, ...]],
    ) -> list[torch.Tensor]:
        """Results with a batch first: all at once, or one after the other where ranks are fixed."""
        general = self.any_rank()
        if general is None:
            alone = [
                self.op(*(x if d is None else x[k] for x, d in zip(moved, dims, strict=True)))
                for k in range(size)
            ]
            rows = [one if isinstance(one, tuple) else (one,) for one in alone]
            return [torch.stack(column) for column in zip(*rows, strict=True)]
        rank = max(len(shape) for shape in logical)
        padded = [
            x.reshape(1 if d is None else size, *(1,) * (rank - len(shape)), *shape)
            for x, d, shape in zip(moved, dims, logical, strict=True)
        ]
        results = general.op(*padded)
        return list(results) if isinstance(results, tuple) else [results]


@functools.cache
def _torch_dtype(name: str) -> torch.dtype:
    found: torch.dtype = getattr(torch, name)
    return found


def _function_of(wrapped: Wrapped) -> Any:
    """The class whose calls torch records."""
    names = [one.name for one in wrapped.graph.inputs]

    def wanted(needed: Sequence[bool]) -> tuple[str, ...]:
        return wrapped.checked([name for name, one in zip(names, needed, strict=True) if one])

    class Recorded(library.Function):
        @staticmethod
        def forward(ctx: Any, *inputs: torch.Tensor) -> Any:
            recorded = wanted(ctx.needs_input_grad)
            results = wrapped.within(inputs)
            if recorded:
                wrapped.check_results([y.shape for y in _several(results)])
            kept = wrapped.backward(recorded)[1] if recorded else []
            ctx.save_for_backward(*(inputs[k] for k in kept if k < len(names)))
            ctx.save_for_forward(*inputs)
            ctx.shapes = [x.shape for x in inputs]
            integers = [y for y in _several(results) if not y.is_floating_point()]
            ctx.mark_non_differentiable(*integers)
            return results

        @staticmethod
        def backward(ctx: Any, *upstream: torch.Tensor) -> tuple[Any, ...]:
            recorded = wanted(ctx.needs_input_grad)
            if not recorded:
                return (None,) * len(names)
            back, places = wrapped.backward(recorded)
            kept = iter(ctx.saved_tensors)
            dys, first = [upstream[k] for k in wrapped.floats()], len(names)
            results = back(*(next(kept) if k < first else dys[k - first] for k in places))
            found = dict(zip(recorded, _several(results), strict=True))
            return tuple(
                found[name].sum_to_size(shape) if name in found else None
                for name, shape in zip(names, ctx.shapes, strict=True)
            )

        @staticmethod
        def jvp(ctx: Any, *tangents: torch.Tensor | None) -> Any:
            given = wanted([t is not None for t in tangents])
            inputs = ctx.saved_tensors
            if not given:
                return _one_or_all(wrapped.tangents({}, inputs))
            pairs = zip(names, tangents, strict=True)
            moving = [t for n, t in pairs if t is not None and n in given]
            wrapped.check_results(wrapped.shapes([tuple(x.shape) for x in inputs]))
            forward, places, reached = wrapped.forward(given)
            shapes = wrapped.iteration(given, [tuple(x.shape) for x in inputs])
            grown = [t.expand(shape) for t, shape in zip(moving, shapes, strict=True)]
            fed = [*inputs, *(None for _ in wrapped.floats()), *grown]
            results = dict(zip(reached, _several(forward(*(fed[k] for k in places))), strict=True))
            return _one_or_all(wrapped.tangents(results, inputs))

    return Recorded


def _one_or_all(results: Sequence[Any]) -> Any:
    return results[0] if len(results) == 1 else tuple(results)


def _several(results: Any) -> Sequence[torch.Tensor]:
    return results if isinstance(results, tuple) else (results,)
