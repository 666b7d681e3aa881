"""What torch is told of an operator: one registration for each way in which torch may call it.

An operator is `relu_ops::NAME`. Its derivatives are kernels of the dispatcher's Autograd key, so
that eager code, torch.func, torch.compile and torch.export all take the same ones; with
`torch.library.register_autograd` a forward derivative would be zero, without a word (torch 2.13).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch._functorch.autograd_function import enable_single_level_autograd_function
from torch.autograd import forward_ad

from relu_ops.native._python import TensorFunction

_NAMESPACE = "relu_ops"
_LIBRARY = torch.library.Library(_NAMESPACE, "FRAGMENT")
"""It lives as long as the process: what it registered goes with it."""

_PLAIN = (torch.Tensor, torch.nn.Parameter)

# By names of their own: looked up where they lie, they take a microsecond more a call.
is_traced = torch.compiler.is_dynamo_compiling  # what it runs itself says False, and is quick
_is_wrapped = torch._C._functorch.is_functorch_wrapped_tensor
_is_batched = torch._C._functorch.is_legacy_batchedtensor  # by is_grads_batched
_transforms_active = torch._C._are_functorch_transforms_active
_dispatch_modes = torch._C._len_torch_dispatch_stack
_function_modes = torch._C._len_torch_function_stack
_profiles = torch._C._autograd._profiler_enabled
_autocasts = torch.is_autocast_enabled
_traces = torch._C._get_tracing_state


@dataclass(frozen=True)
class Kernels:
    """How an operator is computed, in each of torch's ways.

    Attributes:
        schema: Its parameters and results, as torch writes them: "(Tensor x) -> Tensor".
        compute: On ordinary tensors of the CPU.
        fake: On tensors that have a shape and no memory.
        record: A call that a gradient or a tangent may go through.
        batch: Under vmap, as `torch.library.register_vmap` takes it.
        cast: Under autocast; None where the inputs stay as they are.
        at_once: What computes where a call is nothing but its numbers: see `function`.
    """

    schema: str
    compute: Callable[..., Any]
    fake: Callable[..., Any]
    record: Callable[..., Any]
    batch: Callable[..., Any]
    cast: Callable[..., Any] | None = None
    at_once: Callable[..., Any] | None = None

    def recorded(self, *arguments: Any) -> Any:
        """What the dispatcher calls where something may have to be recorded.

        Compiled code calls it with tensors that want no gradient, and so pays for no Function.
        """
        results = None if self.at_once is None else self.at_once(*arguments)
        return results if is_known(results) else self.record(*arguments)


class Function(torch.autograd.function._SingleLevelFunction):
    """A function with derivatives that is called by the dispatcher, or where nothing listens.

    `torch.autograd.Function` would hand itself to torch.func a second time.
    """

    @classmethod
    def recorded(cls, *arguments: Any) -> Any:
        """Call it from the dispatcher, which has taken off the transformation that asks for it."""
        with enable_single_level_autograd_function():
            return cls.apply(*arguments)


def define(name: str, kernels: Kernels) -> Any:
    """Register an operator; return what calls it."""
    qualified = f"{_NAMESPACE}::{name}"
    tags = (torch.Tag.pt2_compliant_tag, torch.Tag.pointwise)
    torch.library.define(qualified, kernels.schema, lib=_LIBRARY, tags=tags)
    _LIBRARY.impl(name, kernels.compute, "CPU")
    _LIBRARY.impl(name, kernels.recorded, "Autograd")
    if kernels.cast is not None:
        _LIBRARY.impl(name, kernels.cast, "AutocastCPU")
    torch.library.register_fake(qualified, kernels.fake, lib=_LIBRARY)
    torch.library.register_vmap(qualified, kernels.batch, lib=_LIBRARY)
    return getattr(getattr(torch.ops, _NAMESPACE), name).default


def compose(name: str, schema: str, compute: Callable[..., Any]) -> Any:
    """Register an operator that is made of others, which have the derivatives."""
    qualified = f"{_NAMESPACE}::{name}"
    torch.library.define(qualified, schema, lib=_LIBRARY, tags=(torch.Tag.pt2_compliant_tag,))
    _LIBRARY.impl(name, compute, "CompositeImplicitAutograd")
    return getattr(getattr(torch.ops, _NAMESPACE), name).default


@contextlib.contextmanager
def below() -> Iterator[None]:
    """Call operators below the level that a Function records.

    Above other levels of torch.func these have to record too, which forward is kept from.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch._C._AutoDispatchBelowAutograd())
        if _transforms_active():
            stack.enter_context(torch.enable_grad())
            stack.enter_context(forward_ad._set_fwd_grad_enabled(True))
        yield


def is_defined(name: str) -> bool:
    """True for a name that some operator of the namespace has."""
    return hasattr(getattr(torch.ops, _NAMESPACE), name)


def nothing_listens(inputs: Sequence[Any]) -> bool:
    """True where a call is nothing but its numbers: no mode, transformation, profiler or trace.

    Then torch's dispatcher, which takes 3 us a call from Python, need not be asked.
    """
    if is_traced():
        return False
    for x in inputs:
        if type(x) not in _PLAIN or not x.is_cpu or _is_wrapped(x) or _is_batched(x):
            return False
    return not (
        _transforms_active()
        or _dispatch_modes()
        or _function_modes()
        or _profiles()
        or _autocasts("cpu")
        or _traces() is not None
        or forward_ad._current_level >= 0
    )


def function(heeds_autocast: bool) -> TensorFunction:
    """A function that computes at once where a call is nothing but its numbers, natively.

    Tensors that a transformation has wrapped are none that it takes; others are constants to it.
    """
    listeners = ((_dispatch_modes,), (_function_modes,), (_profiles,), (_traces,))
    others = ((_autocasts, "cpu"),) if heeds_autocast else ()
    return TensorFunction(listeners, others, vars(forward_ad))


def is_known(results: Any) -> bool:
    """True where a function of `function` has computed."""
    return results is not None and results is not NotImplemented


def wants_gradient(inputs: Sequence[Any]) -> bool:
    """True where torch records, and some input requires a gradient."""
    if torch.is_grad_enabled():
        for x in inputs:
            if x.requires_grad:
                return True
    return False


_CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}
"""By rank."""


def format_of(x: Any) -> Any:
    """The memory format that a result takes over from an input: channels last where x has it."""
    wanted = _CHANNELS_LAST.get(x.dim())
    if wanted is None or x.is_contiguous() or not x.is_contiguous(memory_format=wanted):
        return torch.contiguous_format
    return wanted
