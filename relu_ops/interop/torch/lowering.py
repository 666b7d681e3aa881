"""What torch.compile makes of `relu` and `leaky_relu`: code that it fuses, or our kernel.

Of float32 and float64 both give the same bits: a comparison, a product and a choice, each rounded
once. So Inductor writes them into its loops, beside what comes before and after. Results of 32 MB
and more are our kernel's, whose memory is used again: leaky_relu of 16M float32 takes 6 ms, and 18
as Inductor's code (Intel Xeon, 2 threads, 2026-11-28). So are 16-bit floats and integers, whose
intermediate results Inductor keeps in another precision.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

_LEAST_BYTES_OF_OURS = 32 * 2**20
_WRITTEN = ("torch.float32", "torch.float64")


def register(formulas: Mapping[Any, Callable[..., Any]]) -> None:
    """Tell Inductor of operators, once Inductor itself is there: importing it takes seconds.

    Args:
        formulas: Of each operator, as torch calls it, the value: by Inductor's `ops`, of the dtype,
            the values of its tensors, and its numbers.
    """
    if "torch._inductor.lowering" in sys.modules:
        for operator, formula in formulas.items():
            _register(operator, formula)


@functools.cache
def _register(operator: Any, formula: Callable[..., Any]) -> None:
    from torch._inductor import lowering
    from torch._inductor.virtualized import ops

    called = lowering.fallback_handler(operator, add_to_fallback_set=False)

    def lowered(*arguments: Any) -> Any:
        tensors = [x for x in arguments if hasattr(x, "get_size")]
        if not _is_written(tensors):
            return called(*arguments)
        numbers, dtype = arguments[len(tensors) :], tensors[0].get_dtype()
        point = lowering.make_pointwise(lambda *values: formula(ops, dtype, *values, *numbers))
        return point(*tensors)

    lowering.register_lowering(operator, type_promotion_kind=None)(lowered)


def _is_written(tensors: Sequence[Any]) -> bool:
    """Whether Inductor writes the code: of its dtypes, and for a result that is not large."""
    sizes, dtypes = [tuple(x.get_size()) for x in tensors], [x.get_dtype() for x in tensors]
    if any(size != sizes[0] for size in sizes) or any(str(d) not in _WRITTEN for d in dtypes):
        return False
    elements = 1
    for extent in sizes[0]:
        elements *= _usual(extent)
    return elements * dtypes[0].itemsize < _LEAST_BYTES_OF_OURS


def _usual(extent: Any) -> int:
    """An extent; of a dynamic one, that of the example which is compiled."""
    from torch._inductor.virtualized import V

    sizes = V.graph.sizevars  # of torch 2.13; older releases call it size_hint
    hint = getattr(sizes, "optimization_hint", None) or sizes.size_hint
    return int(hint(extent, fallback=0))
