"""Measures on another machine: planned and compiled here, carried out and recorded there.

The other machine needs the base install alone: what a compiler's packages are for (models, graphs)
goes there ready-made. Other peers take part where they are installed there.
"""

from __future__ import annotations

import argparse
import pickle
from dataclasses import dataclass, replace
from typing import Any

import msgspec

from relu_ops import targets
from relu_ops.bench import command, record, runner
from relu_ops.bench.planning import Group, Place, Settings
from relu_ops.bench.record import Record
from relu_ops.bundle import store as bundles
from relu_ops.bundle.store import Bundle
from relu_ops.contract import ir
from relu_ops.errors import HostError, TargetError
from relu_ops.hosts.session import Session
from relu_ops.runtime import dispatch
from relu_ops.verification import Progress
from relu_ops.verification import hosts as verifying

_Key = tuple[str, str]
"""A case and a dtype."""


@dataclass(frozen=True)
class Order:
    """What is to be measured, as it is sent. Pickled: whoever sends it may run any code there.

    Attributes:
        groups: What; their cases are without models.
        settings: How.
        bundles: The files of each bundle.
        operators: Where each operator is: the number of its bundle, its name, what it computes.
    """

    groups: list[Group]
    settings: Settings
    bundles: list[dict[str, bytes]]
    operators: dict[_Key, tuple[int, str, ir.Graph]]


def order(options: argparse.Namespace, session: Session) -> bytes:
    """What is sent to another machine for what a command line asks; operators are compiled here.

    Raises:
        ReluOpsError: As for a benchmark here; of a target, the message names the host.
    """
    try:
        return pickle.dumps(_order_of(command.asked(options, place_of(session))))
    except TargetError as error:
        named = error.message.startswith(f"{session.host}: ")
        message = error.message if named else f"{session.host}: {error.message}"
        raise TargetError(message, error.hint) from error


def measure(content: bytes, session: Session, progress: Progress) -> Record:
    """Have an order carried out.

    Raises:
        HostError: The connection was lost.
        ReluOpsError: relu_ops failed there, or computed something wrong.
    """
    _, (answer,) = session.ask("bench", [content], progress, doing="measure")
    try:
        found = record.decode(bytes(answer))
    except msgspec.DecodeError as error:
        raise HostError(
            f"{session.host}: its answer is no record of a benchmark: {error}",
            "install the same relu_ops on both machines",
        ) from error
    return msgspec.structs.replace(found, machine={**found.machine, "on": session.host})


def place_of(session: Session) -> Place:
    """Another machine, for plans."""

    def choose(bundle: Bundle) -> str:
        verifying.send(session, bundle)
        best: str = session.ask("choose")[0]
        return best

    return Place(session.machine, lambda: session.cuda, lambda: session.threads, choose)


def _order_of(asked: command.Asked) -> Order:
    """What is sent: each case is compiled here, for all of its targets at once."""
    levels: dict[_Key, list[str]] = {}
    chosen = {}
    for group in asked.groups:
        key = (group.case.name, group.dtype)
        levels.setdefault(key, []).append(group.target)
        chosen[key] = group.case
    if asked.bundle is not None:
        held = [asked.bundle]
        operators = {key: (0, key[0], _graph(asked.bundle, key[0])) for key in levels}
    else:
        held = [_compiled(chosen[key], key[1], names) for key, names in levels.items()]
        operators = {
            key: (number, name, _graph(bundle, name))
            for number, (key, bundle) in enumerate(zip(levels, held, strict=True))
            for name in bundle.handle.operators
        }
    groups = [replace(group, case=group.case.without_model()) for group in asked.groups]
    return Order(groups, asked.settings, [dict(b.contents) for b in held], operators)


def _compiled(case: Any, dtype: str, names: list[str]) -> Bundle:
    from relu_ops import compiler

    return bundles.from_contents(case.name, compiler.make(case.make(dtype), names))


def _graph(bundle: Bundle, name: str) -> ir.Graph:
    from relu_ops.compiler import frontend

    return frontend.import_model(frontend.read_model(bundle.model(name)))


# ---------------------------------------------------------------------------------------------
# There


def carry_out(content: bytes, progress: Progress) -> bytes:
    """Measure what an order says, on this machine.

    Args:
        content: The order, pickled.
        progress: Shows how far it is.

    Returns:
        The record, as in a file.
    """
    order: Order = pickle.loads(content)
    held = [bundles.from_contents("the bundle", files) for files in order.bundles]
    graphs: dict[tuple[str, str], ir.Graph] = {}

    def make(case: Any, dtype: str, target: str) -> Any:
        number, name, graph = order.operators[case.name, dtype]
        cuda = targets.parse(target).backend.ordinal
        graphs[held[number].digest, name] = graph
        return dispatch.operator_of(held[number], name=name, target=target, cuda=cuda)

    def graph_of(operator: Any) -> ir.Graph:
        return graphs[operator.bundle.digest, operator.name]

    found = runner.measure(order.groups, order.settings, make, progress, graph_of)
    return record.encode(found)
