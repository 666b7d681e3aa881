"""Verbs that check and measure, here or on other machines."""

from __future__ import annotations

import argparse
import contextlib
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from relu_ops.command.terminal import CHECK_FAILED, FINE, progress, say
from relu_ops.errors import ArgumentError

if TYPE_CHECKING:
    from relu_ops.bench.machines import Column
    from relu_ops.bench.record import Record
    from relu_ops.hosts import Session
    from relu_ops.verification import Report

_BUSY = 0.05
"""Where others have more of the processors, what is measured is worth little."""


# ---------------------------------------------------------------------------------------------
# Other machines


def _hosts(verb: str, options: argparse.Namespace) -> list[str]:
    """The hosts that were named, each once."""
    if options.python and not options.on:
        raise ArgumentError(
            f"{verb}: --python says which Python of another machine runs, and --on names none",
            "give --on too, for example --on alpha, or leave it out",
        )
    return list(dict.fromkeys(options.on or ()))


@contextlib.contextmanager
def _connected(hosts: Sequence[str], options: argparse.Namespace) -> Iterator[list[Session]]:
    """All of them at once: whoever is missing is missed before anything is done."""
    from relu_ops.hosts import connect, ssh

    python = options.python or ssh.PYTHON
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(connect(host, python)) for host in hosts]


# ---------------------------------------------------------------------------------------------
# verify


def verify(options: argparse.Namespace) -> int:
    """Check a bundle or a model."""
    hosts = _hosts("verify", options)
    reports = []
    for report in _reports(options, hosts):
        reports.append(report)
        if not options.json:
            print(report, flush=True)
    if options.json:
        shown = [report.to_dict() for report in reports]
        named = dict(zip(hosts, shown, strict=True)) if len(hosts) > 1 else shown[0]
        print(json.dumps(named, indent=1))
    return FINE if all(report.ok for report in reports) else CHECK_FAILED


def _reports(options: argparse.Namespace, hosts: Sequence[str]) -> Iterator[Report]:
    if not hosts:
        yield _report(options, None)
        return
    with _connected(hosts, options) as sessions:
        for session in sessions:
            yield _report(options, session)


def _report(options: argparse.Namespace, session: Session | None) -> Report:
    from relu_ops import verification

    return verification.verify(
        options.path,
        name=options.name,
        target=options.target,
        device=options.device,
        exhaustive=options.exhaustive,
        seed=options.seed,
        case=options.case,
        progress=progress,
        on=session,
    )


# ---------------------------------------------------------------------------------------------
# bench

_MEASURED = (
    *("path", "graph", "target", "size", "dtype", "threads", "peer", "mode", "quick"),
    *("on", "python"),
)
"""What says what to measure: nothing is where a record is shown."""


def _check_measures_nothing(options: argparse.Namespace) -> None:
    """Refuse what `--show` and `--compare` would leave unheeded."""
    unheeded = {"show": _MEASURED, "compare": (*_MEASURED, "show", "record")}
    for reading, others in unheeded.items():
        given = [name for name in others if getattr(options, name)]
        if getattr(options, reading) and given:
            shown = given[0] if given[0] == "path" else f"--{given[0]}"
            raise ArgumentError(
                f"bench: --{reading} measures nothing, and {shown} was given as well",
                "leave out one or the other",
            )


def bench(options: argparse.Namespace) -> int:
    """Time graphs, a bundle or a model; or show and compare what was timed."""
    from relu_ops.bench import command, record

    _check_measures_nothing(options)
    if options.compare:
        return _compare(options)
    hosts = _hosts("bench", options)
    paths = _record_paths(options.record, hosts)
    for path in paths:
        command.check_outputs(path, options.plot)
    found = []
    for one, path in zip(_measured(options, hosts), paths, strict=True):
        found.append(one)
        if path:
            record.write(one, path)
            say(f"{path}: {len(one.timings)} timings")
    if len(hosts) > 1:
        return _show_machines(options, hosts, found)
    if options.plot:
        _draw(found[0], options.plot)
    _print_record(found[0], options.json)
    return FINE


def _measured(options: argparse.Namespace, hosts: Sequence[str]) -> Iterator[Record]:
    from relu_ops.bench import command, record
    from relu_ops.bench import hosts as there

    if options.show:
        yield record.read(options.show)
    elif not hosts:
        yield command.run(options, progress)
    else:
        with _connected(hosts, options) as sessions:
            orders = [there.order(options, session) for session in sessions]
            for session, order in zip(sessions, orders, strict=True):
                yield there.measure(order, session, progress)


def _record_paths(path: str | None, hosts: Sequence[str]) -> list[str | None]:
    """Where each record goes: that of each of several hosts beside the others, by its name."""
    if path is None or len(hosts) < 2:
        return [path] * max(len(hosts), 1)
    whole = Path(path)
    return [str(whole.with_name(f"{whole.stem}-{_file_name(h)}{whole.suffix}")) for h in hosts]


def _file_name(host: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "_", host)


def _print_record(found: Record, as_json: bool) -> None:
    from relu_ops.bench import record, tables

    print(record.encode(found).decode() if as_json else tables.render(found))


def _draw(found: Record, folder: str | Path) -> None:
    from relu_ops.bench import plots

    say(f"{folder}: {len(plots.draw(found, folder))} pictures")


def _show_machines(
    options: argparse.Namespace, hosts: Sequence[str], found: Sequence[Record]
) -> int:
    """What several machines gave: each alone, then all side by side."""
    import msgspec

    from relu_ops.bench import machines

    columns = machines.columns_of(found, hosts)
    if options.plot:
        for host, one in zip(hosts, found, strict=True):
            _draw(one, Path(options.plot) / _file_name(host))
        _draw_machines(columns, options.plot)
    if options.json:
        records = {h: msgspec.to_builtins(one) for h, one in zip(hosts, found, strict=True)}
        print(json.dumps(records))
        return FINE
    for one in found:
        _print_record(one, False)
        print()
    _print_machines(columns, False)
    return FINE


def _draw_machines(columns: Sequence[Column], folder: str) -> None:
    from relu_ops.bench import plots

    say(f"{folder}: {len(plots.draw_machines(columns, folder))} pictures of machines")


def _print_machines(columns: Sequence[Column], as_json: bool) -> None:
    import msgspec

    from relu_ops.bench import machines, tables

    rows = machines.side_by_side(columns)
    if not as_json:
        print(tables.render_machines(columns, rows))
        return
    described = [{"title": c.title, "target": c.target, **c.record.machine} for c in columns]
    print(json.dumps({"machines": described, "rows": msgspec.to_builtins(rows)}))


def _compare(options: argparse.Namespace) -> int:
    """Records side by side: two of one machine as before and after, others as machines."""
    import msgspec

    from relu_ops.bench import command, machines, record, tables

    if len(options.compare) < 2:
        raise ArgumentError(
            "bench: --compare must be given at least 2 records (not 1)",
            "relu-ops bench --record FILE writes one",
        )
    found = [record.read(path) for path in options.compare]
    columns = machines.columns_of(found, options.compare)
    command.check_outputs(None, options.plot)
    if options.plot:
        _draw_machines(columns, options.plot)
    if len(found) > 2 or len(set(map(machines.host_of, found))) > 1:
        _print_machines(columns, options.json)
        return FINE
    rows: Any = record.compare(*found)
    print(json.dumps(msgspec.to_builtins(rows)) if options.json else tables.render_comparison(rows))
    return FINE


# ---------------------------------------------------------------------------------------------
# tune


def tune(options: argparse.Namespace) -> int:
    """Measure from which sizes on threads and streaming stores pay."""
    from relu_ops.bench import environment, tune
    from relu_ops.runtime import tuning

    usage = environment.Usage()
    measured = tune.tune(progress)
    print(tuning.encode(measured))
    others = usage.share_of_others() or 0.0
    if others > _BUSY:
        say(f"others had {others:.0%} of the processors: tune again when these are idle")
    if not options.dry_run:
        path = tuning.store(measured)
        say(f"{path}: written; every process heeds it from now on. Remove it to take it back")
    return FINE
