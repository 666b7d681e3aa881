"""relu_ops itself."""

from __future__ import annotations

from relu_ops.bench.peers.problem import Prepared, Problem, into, listed


def bound(problem: Problem) -> Prepared:
    """A call that was bound once."""
    outs = problem.outs
    call = problem.operator.bind(*problem.inputs, out=outs[0] if len(outs) == 1 else outs)
    return Prepared(call, into(outs))


def out(problem: Problem) -> Prepared:
    """`op(x, out=y)`."""
    operator, inputs, outs = problem.operator, tuple(problem.inputs), problem.outs
    if len(outs) != 1:
        return Prepared(lambda: operator(*inputs, out=outs), into(outs))
    (y,) = outs
    if len(inputs) == 1:
        (x,) = inputs
        return Prepared(lambda: operator(x, out=y), into(outs))
    return Prepared(lambda: operator(*inputs, out=y), into(outs))


def new(problem: Problem) -> Prepared:
    """`y = op(x)`."""
    operator, inputs = problem.operator, tuple(problem.inputs)
    if len(inputs) == 1:
        (x,) = inputs
        return Prepared(lambda: operator(x), listed, allocates=True)
    return Prepared(lambda: operator(*inputs), listed, allocates=True)
