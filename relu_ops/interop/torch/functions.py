"""`relu` and `leaky_relu` of tensors, with their derivatives.

Four operators of torch: two functions, and two gradients, whose own derivatives they are. For each
dtype they are those of `relu_ops.standard`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch

from relu_ops import standard
from relu_ops.errors import ArgumentTypeError
from relu_ops.interop.torch import library, lowering

_USUAL_SLOPE = 0.01
_INTEGERS = ("int8", "int16", "int32", "int64")
_FLOATS = ("float16", "bfloat16", "float32", "float64")

# What computes where a call is nothing but its numbers; each knows the dtypes that were met. By
# names of their own: in company a look into a cold dictionary takes as long as a call.
_is_traced = library.is_traced
_relu_at_once = library.function(heeds_autocast=False)
_leaky_relu_at_once = library.function(heeds_autocast=False)
_leaky_relu_of_any_slope_at_once = library.function(heeds_autocast=False)
_relu_grad_at_once = library.function(heeds_autocast=False)
_leaky_relu_grad_at_once = library.function(heeds_autocast=False)
_AT_ONCE = {
    "relu": _relu_at_once,
    "leaky_relu": _leaky_relu_at_once,
    "leaky_relu_of_any_slope": _leaky_relu_of_any_slope_at_once,
    "relu_grad": _relu_grad_at_once,
    "leaky_relu_grad_of_any_slope": _leaky_relu_grad_at_once,
}


def relu(x: torch.Tensor) -> torch.Tensor:
    """Compute 0 where x < 0, else x, with gradient.

    Args:
        x: A tensor of float16, bfloat16, float32, float64 or int8 to int64. Autocast leaves it in
            its dtype, as it leaves `torch.relu`.

    Returns:
        A tensor of the shape and dtype of x; channels last where x is, else contiguous.

    >>> relu(torch.tensor([-1.5, 2.0]))
    tensor([0., 2.])
    """
    if _is_traced():  # first: compiled code guards whatever is looked at on the way
        return RELU(x)
    y = _relu_at_once(x)
    if y is NotImplemented:
        return _EagerRelu.apply(x)
    return _relu_with_care(x) if y is None else y


def _any_leaky_relu_at_once(x: torch.Tensor, negative_slope: float = _USUAL_SLOPE) -> Any:
    if negative_slope == _USUAL_SLOPE:
        return _leaky_relu_at_once(x)
    return _leaky_relu_of_any_slope_at_once(x, negative_slope)


def _relu_with_care(x: torch.Tensor) -> torch.Tensor:
    if not library.nothing_listens((x,)):
        return RELU(x)
    if library.wants_gradient((x,)):
        return _EagerRelu.apply(x)
    return _compute_relu(x)


def leaky_relu(x: torch.Tensor, negative_slope: float = _USUAL_SLOPE) -> torch.Tensor:
    """Compute negative_slope * x where x < 0, else x, with gradient.

    Args:
        x: A tensor of float16, bfloat16, float32 or float64.
        negative_slope: The slope below zero; rounded to float32, then to the dtype of x. (torch
            takes a double for float64, and for 16 bits rounds after the product alone.)

    Returns:
        As `relu`.

    >>> leaky_relu(torch.tensor([-2.0, 3.0]), 0.5)
    tensor([-1.,  3.])
    """
    if _is_traced():
        return LEAKY_RELU(x, negative_slope)
    if negative_slope == _USUAL_SLOPE:
        y = _leaky_relu_at_once(x)
    else:
        y = _leaky_relu_of_any_slope_at_once(x, negative_slope)
    if y is NotImplemented:
        return _EagerLeakyRelu.apply(x, negative_slope)
    return _leaky_relu_with_care(x, negative_slope) if y is None else y


def _leaky_relu_with_care(x: torch.Tensor, negative_slope: float) -> torch.Tensor:
    if not library.nothing_listens((x,)):
        return LEAKY_RELU(x, negative_slope)
    if library.wants_gradient((x,)):
        return _EagerLeakyRelu.apply(x, negative_slope)
    return _compute_leaky_relu(x, negative_slope)


# ---------------------------------------------------------------------------------------------
# Computing


@functools.cache
def _operator(graph: str, dtype: torch.dtype) -> Any:
    """The operator of a graph of `relu_ops.standard` for a dtype of torch."""
    name = str(dtype).removeprefix("torch.")
    allowed = (*_FLOATS, *_INTEGERS) if graph == "relu" else _FLOATS
    if name not in allowed:
        raise ArgumentTypeError(
            f"{graph}: x.dtype must be one of {', '.join(allowed)} (not {name})",
            "convert it first, for example with x.float()",
        )
    operator = standard.operator(graph, name)
    if graph in _AT_ONCE:
        _AT_ONCE[graph].remember(operator)
    return operator


@functools.cache
def _slope(slope: float, dtype: torch.dtype) -> float:
    return standard.rounded(slope, str(dtype).removeprefix("torch."))


def _called(operator: Any, x: torch.Tensor, *inputs: Any) -> torch.Tensor:
    """A result in the memory format of x."""
    format_ = library.format_of(x)
    if format_ is torch.contiguous_format:
        return operator(*inputs)
    return operator(*inputs, out=torch.empty_like(x, memory_format=format_))


def _compute_relu(x: torch.Tensor) -> torch.Tensor:
    return _called(_operator("relu", x.dtype), x, x)


def _compute_leaky_relu(x: torch.Tensor, negative_slope: float = _USUAL_SLOPE) -> torch.Tensor:
    if negative_slope == _USUAL_SLOPE:
        return _called(_operator("leaky_relu", x.dtype), x, x)
    slope = _slope(negative_slope, x.dtype)
    return _called(_operator("leaky_relu_of_any_slope", x.dtype), x, x, slope)


def _compute_relu_grad(dy: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return _called(_operator("relu_grad", y.dtype), y, dy, y)


def _compute_leaky_relu_grad(
    dy: torch.Tensor, y: torch.Tensor, negative_slope: float
) -> torch.Tensor:
    operator = _operator("leaky_relu_grad_of_any_slope", y.dtype)
    return _called(operator, y, dy, y, _slope(negative_slope, y.dtype))


def _fake(x: torch.Tensor, *_: Any) -> torch.Tensor:
    lowering.register(_FORMULAS)  # compilers ask this first
    return torch.empty_like(x, memory_format=library.format_of(x))


def _fake_grad(dy: torch.Tensor, y: torch.Tensor, *_: Any) -> torch.Tensor:
    lowering.register(_FORMULAS)
    return torch.empty_like(y, memory_format=library.format_of(y))


# ---------------------------------------------------------------------------------------------
# Derivatives. What is kept is the result: the next layer keeps it too. Its sign is that of x,
# unless the slope is negative.


def _has_sign_of_input(negative_slope: float) -> bool:
    return negative_slope >= 0


class _Relu(library.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        y = _within(_compute_relu, RELU, x)
        ctx.save_for_backward(y)
        ctx.save_for_forward(y)
        return y

    @staticmethod
    def backward(ctx: Any, dy: torch.Tensor) -> torch.Tensor:
        return _relu_grad(dy, *ctx.saved_tensors)

    @staticmethod
    def jvp(ctx: Any, dx: torch.Tensor) -> torch.Tensor:
        return _relu_grad(dx, *ctx.saved_tensors)


class _EagerRelu(_Relu):
    """The same where nothing listens, as its caller knows: so nothing is asked a second time."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        y = _compute_relu(x)
        ctx.save_for_backward(y)
        return y


class _ReluGrad(library.Function):
    @staticmethod
    def forward(ctx: Any, dy: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(y)
        ctx.save_for_forward(y)
        return _within(_compute_relu_grad, RELU_GRAD, dy, y)

    @staticmethod
    def backward(ctx: Any, ddx: torch.Tensor) -> tuple[Any, ...]:
        return _relu_grad(ddx, *ctx.saved_tensors), None

    @staticmethod
    def jvp(ctx: Any, ddy: torch.Tensor | None, _: Any) -> torch.Tensor:
        (y,) = ctx.saved_tensors
        return torch.zeros_like(y) if ddy is None else _relu_grad(ddy, y)


class _LeakyRelu(library.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, negative_slope: float) -> torch.Tensor:
        y = _within(_compute_leaky_relu, LEAKY_RELU, x, negative_slope)
        kept = y if _has_sign_of_input(negative_slope) else x
        ctx.save_for_backward(kept)
        ctx.save_for_forward(kept)
        ctx.slope = negative_slope
        return y

    @staticmethod
    def backward(ctx: Any, dy: torch.Tensor) -> tuple[Any, ...]:
        return _leaky_relu_grad(dy, ctx.saved_tensors[0], ctx.slope), None

    @staticmethod
    def jvp(ctx: Any, dx: torch.Tensor, _: Any) -> torch.Tensor:
        return _leaky_relu_grad(dx, ctx.saved_tensors[0], ctx.slope)


class _EagerLeakyRelu(_LeakyRelu):
    """As `_EagerRelu`."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, negative_slope: float) -> torch.Tensor:
        y = _compute_leaky_relu(x, negative_slope)
        ctx.save_for_backward(y if _has_sign_of_input(negative_slope) else x)
        ctx.slope = negative_slope
        return y


class _LeakyReluGrad(library.Function):
    @staticmethod
    def forward(ctx: Any, dy: torch.Tensor, y: torch.Tensor, negative_slope: float) -> torch.Tensor:
        ctx.save_for_backward(y)
        ctx.save_for_forward(y)
        ctx.slope = negative_slope
        return _within(_compute_leaky_relu_grad, LEAKY_RELU_GRAD, dy, y, negative_slope)

    @staticmethod
    def backward(ctx: Any, ddx: torch.Tensor) -> tuple[Any, ...]:
        return _leaky_relu_grad(ddx, ctx.saved_tensors[0], ctx.slope), None, None

    @staticmethod
    def jvp(ctx: Any, ddy: torch.Tensor | None, *_: Any) -> torch.Tensor:
        (y,) = ctx.saved_tensors
        return torch.zeros_like(y) if ddy is None else _leaky_relu_grad(ddy, y, ctx.slope)


def _within(compute: Any, operator: Any, *arguments: Any) -> torch.Tensor:
    """Compute inside of a Function: at once, or by the dispatcher, below what records gradients."""
    tensors = [x for x in arguments if isinstance(x, torch.Tensor)]
    if library.nothing_listens(tensors):
        return compute(*arguments)
    with library.below():
        return operator(*arguments)


def _relu_grad(dy: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    dx = _relu_grad_at_once(dy, y)
    if library.is_known(dx):
        return dx
    if library.nothing_listens((dy, y)) and not library.wants_gradient((dy, y)):
        return _compute_relu_grad(dy, y)
    return RELU_GRAD(dy, y)


def _leaky_relu_grad(dy: torch.Tensor, y: torch.Tensor, negative_slope: float) -> torch.Tensor:
    dx = _leaky_relu_grad_at_once(dy, y, negative_slope)
    if library.is_known(dx):
        return dx
    if library.nothing_listens((dy, y)) and not library.wants_gradient((dy, y)):
        return _compute_leaky_relu_grad(dy, y, negative_slope)
    return LEAKY_RELU_GRAD(dy, y, negative_slope)


# ---------------------------------------------------------------------------------------------
# vmap: elementwise, so that a batch is one more dimension


def _batch_relu(info: Any, dims: Any, x: torch.Tensor) -> tuple[torch.Tensor, int]:
    return RELU(x), dims[0]


def _batch_leaky_relu(
    info: Any, dims: Any, x: torch.Tensor, negative_slope: float = _USUAL_SLOPE
) -> tuple[torch.Tensor, int]:
    return LEAKY_RELU(x, negative_slope), dims[0]


def _aligned(info: Any, dims: Any, *tensors: torch.Tensor) -> list[torch.Tensor]:
    """Tensors of one shape with their batch first, repeated where one has none."""
    moved = []
    for x, dim in zip(tensors, dims, strict=False):
        moved.append(x.expand(info.batch_size, *x.shape) if dim is None else x.movedim(dim, 0))
    return moved


def _batch_relu_grad(info: Any, dims: Any, *tensors: torch.Tensor) -> tuple[torch.Tensor, int]:
    return RELU_GRAD(*_aligned(info, dims, *tensors)), 0


def _batch_leaky_relu_grad(
    info: Any, dims: Any, dy: torch.Tensor, y: torch.Tensor, negative_slope: float
) -> tuple[torch.Tensor, int]:
    return LEAKY_RELU_GRAD(*_aligned(info, dims[:2], dy, y), negative_slope), 0


# ---------------------------------------------------------------------------------------------
# What torch is told

RELU = library.define(
    "relu",
    library.Kernels(
        "(Tensor x) -> Tensor",
        _compute_relu,
        _fake,
        _Relu.recorded,
        _batch_relu,
        at_once=_relu_at_once,
    ),
)
RELU_GRAD = library.define(
    "relu_grad",
    library.Kernels(
        "(Tensor dy, Tensor y) -> Tensor",
        _compute_relu_grad,
        _fake_grad,
        _ReluGrad.recorded,
        _batch_relu_grad,
        at_once=_relu_grad_at_once,
    ),
)
LEAKY_RELU = library.define(
    "leaky_relu",
    library.Kernels(
        f"(Tensor x, float negative_slope={_USUAL_SLOPE}) -> Tensor",
        _compute_leaky_relu,
        _fake,
        lambda x, negative_slope=_USUAL_SLOPE: _LeakyRelu.recorded(x, negative_slope),
        _batch_leaky_relu,
        at_once=_any_leaky_relu_at_once,
    ),
)
LEAKY_RELU_GRAD = library.define(
    "leaky_relu_grad",
    library.Kernels(
        "(Tensor dy, Tensor y, float negative_slope) -> Tensor",
        _compute_leaky_relu_grad,
        _fake_grad,
        _LeakyReluGrad.recorded,
        _batch_leaky_relu_grad,
        at_once=_leaky_relu_grad_at_once,
    ),
)


# ---------------------------------------------------------------------------------------------
# What torch.compile may write in their place: by Inductor's operations, as docs/semantics.md has it


def _relu_formula(ops: Any, dtype: torch.dtype, x: Any) -> Any:
    zero = ops.constant(0, dtype)
    return ops.where(ops.lt(x, zero), zero, x)


def _relu_grad_formula(ops: Any, dtype: torch.dtype, dy: Any, y: Any) -> Any:
    zero = ops.constant(0, dtype)
    return ops.where(ops.gt(y, zero), dy, zero)


def _leaky_relu_formula(
    ops: Any, dtype: torch.dtype, x: Any, negative_slope: float = _USUAL_SLOPE
) -> Any:
    slope = _slope(negative_slope, dtype)
    product = ops.mul(x, ops.constant(slope, dtype))
    if 0 < slope <= 1:  # the greater of both, and NaN where x is: without a mask
        return ops.maximum(x, product)
    # Not by x < 0: g++ then has the product wait for a mask, 62 us for 57 at 256k elements.
    return ops.where(ops.ge(x, ops.constant(0, dtype)), x, product)


def _leaky_relu_grad_formula(
    ops: Any, dtype: torch.dtype, dy: Any, y: Any, negative_slope: float
) -> Any:
    slope = ops.constant(_slope(negative_slope, dtype), dtype)
    return ops.where(ops.gt(y, ops.constant(0, dtype)), dy, ops.mul(dy, slope))


_FORMULAS: dict[Any, Callable[..., Any]] = {
    RELU: _relu_formula,
    RELU_GRAD: _relu_grad_formula,
    LEAKY_RELU: _leaky_relu_formula,
    LEAKY_RELU_GRAD: _leaky_relu_grad_formula,
}
