"""The command line: one verb a task. Data on stdout, talk on stderr.

Exit code 0: fine; 1: a check failed; 2: bad usage, or nothing usable here.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import re
import sys
import zipfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from relu_ops._version import __version__
from relu_ops.contract.semantics import DTYPES
from relu_ops.errors import ArgumentError, ReluOpsError, counted, require

if TYPE_CHECKING:
    from relu_ops.runtime.operator import Operator

FINE, CHECK_FAILED, UNUSABLE = 0, 1, 2
_DESCRIPTION = "The command line: one verb a task. Data on stdout, talk on stderr."
_BUSY = 0.05
"""Where others have more of the processors, what is measured is worth little."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return its exit code."""
    if isinstance(sys.stdout, io.TextIOWrapper):  # a path may hold what the terminal cannot show
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        options = _parser().parse_args(_shielded(sys.argv[1:] if arguments is None else arguments))
        verb: Callable[[argparse.Namespace], int] = options.verb
        code = verb(options)
        if sys.stdout is not None:  # it is, where the shell closed it
            sys.stdout.flush()
        return code
    except BrokenPipeError:
        # The reader has seen enough. Python flushes once more at exit, into nothing then.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FINE
    except ReluOpsError as error:
        _say(f"relu-ops: {error}")
        return UNUSABLE
    except OSError as error:
        where = "" if error.filename is None else f"{os.fsdecode(error.filename)}: "
        _say(f"relu-ops: {where}{error.strerror or error}")
        return UNUSABLE
    except MemoryError as error:
        _say(f"relu-ops: there is not enough memory: {error}")
        return UNUSABLE
    except KeyboardInterrupt:
        _say("relu-ops: interrupted")
        return 130


def verbs() -> tuple[str, ...]:
    """Every verb, in the order of the help."""
    return tuple(_VERBS)


def _shielded(arguments: Sequence[str]) -> list[str]:
    """Arguments in which argparse takes no negative number for an option.

    It knows -1 and -0.5, and not -1e-3 or -inf. What begins with a space is no option to it, and
    the same number to float.
    """
    return [f" {a}" if _NEGATIVE.fullmatch(a) else a for a in arguments]


_NEGATIVE = re.compile(r"-(\d+\.?\d*|\.\d+)[eE][-+]?\d+|-\d+\.|-inf|-nan")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="relu-ops", description=_DESCRIPTION)
    parser.add_argument("--version", action="version", version=f"relu-ops {__version__}")
    parser.add_argument(
        "--print-completion",
        action=_Completion,
        choices=("bash", "zsh"),
        help="print a script that completes commands, for a shell to read",
    )
    verbs = parser.add_subparsers(required=True, metavar="VERB")
    for name, (run, help_text, options) in _VERBS.items():
        verb = verbs.add_parser(name, help=help_text, description=help_text)
        verb.set_defaults(verb=run)
        for flags, settings in options:
            verb.add_argument(*flags, **settings)
    return parser


class _Completion(argparse.Action):
    """Prints the completion script of a shell, and ends."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: Any, values: Any, option: Any = None
    ) -> None:
        require("shtab", "completion", "relu-ops --print-completion")
        import shtab

        for action in _actions(parser):
            if action.dest in _FILES:
                action.complete = shtab.FILE  # type: ignore[attr-defined]
        print(shtab.complete(parser, shell=values))
        parser.exit()


_FILES = {
    "bundle", "compare", "folder", "inputs", "models", "output", "path", "paths", "plot", "record",
    "show",
}  # fmt: skip
"""The arguments that are paths."""


def _actions(parser: argparse.ArgumentParser) -> Iterable[argparse.Action]:
    for action in parser._actions:
        yield action
        if isinstance(action, argparse._SubParsersAction):
            for verb in action.choices.values():
                yield from verb._actions


def _say(text: str) -> None:
    if sys.stderr is not None:  # print would take None for stdout, which is for data
        print(text, file=sys.stderr)


def _progress(items: Iterable[Any], total: int, title: str) -> Iterable[Any]:
    try:
        import tqdm
    except ImportError:
        return items
    return tqdm.tqdm(items, total=total, desc=title, disable=None)


# ---------------------------------------------------------------------------------------------
# Verbs


def _export(options: argparse.Namespace) -> int:
    from relu_ops import graphs

    wrong = graphs.export(options.folder, check=options.check)
    if options.check:
        for name in wrong:
            print(name)
        count = len(graphs.MODELS) + 1  # and their README
        _say(f"{options.folder}: {len(wrong)} of {count} files differ")
        return CHECK_FAILED if wrong else FINE
    _say(f"{options.folder}: {len(graphs.MODELS)} models")
    return FINE


def _build(options: argparse.Namespace) -> int:
    from relu_ops import compiler

    digest = compiler.build(_models(options), options.target or ["native"], options.output)
    _say(f"{options.output}: built for {', '.join(options.target or ['native'])}")
    print(digest)
    return FINE


def _partition(options: argparse.Namespace) -> int:
    from relu_ops import partitioning

    report = partitioning.partition(
        options.model,
        options.output,
        options.target or ["native"],
        measure=options.measure,
        inputs=dict(pair for path in options.input or () for pair in _read_arrays(path)),
        dims=dict(map(_dimension, options.dim or ())),
        threads=options.threads,
    )
    print(json.dumps(report.as_dict(), indent=1) if options.json else report)
    _say(f"{options.output}: written")
    return FINE


def _dimension(text: str) -> tuple[str, int]:
    """Parse NAME=EXTENT."""
    name, _, extent = text.rpartition("=")
    if not name or not re.fullmatch(r"[0-9]{1,18}", extent):
        raise ArgumentError(
            f"partition: --dim must be a name and an extent (not {text!r})",
            "for example --dim batch=8",
        )
    return name, int(extent)


def _read_arrays(path: str) -> list[tuple[str, np.ndarray]]:
    """The arrays of an .npz file, by the names of inputs."""
    try:
        with np.load(path) as arrays:
            return list(arrays.items())
    except OSError as error:
        raise ArgumentError(f"{path}: cannot be read: {error.strerror or error}") from error
    except (ValueError, EOFError, AttributeError, zipfile.BadZipFile) as error:
        raise ArgumentError(
            f"{path}: is not a readable .npz file",
            "write one with numpy.savez, an array for the name of each input",
        ) from error


def _models(options: argparse.Namespace) -> str | dict[str, str]:
    """The models to build: one file, or several with the names of their operators."""
    names = options.name or [Path(path).stem for path in options.models]
    if len(names) != len(options.models):
        given = f"{counted(len(options.models), 'model')}, {counted(len(names), 'name')}"
        raise ArgumentError(
            f"build: --name must be given once for each model ({given})",
            "give them in the order of the models, or none",
        )
    if len(set(names)) != len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ArgumentError(
            f"build: two operators would have the name {twice!r}",
            "give each a name of its own: --name once for each model, in their order",
        )
    if len(options.models) == 1 and not options.name:
        return str(options.models[0])
    return dict(zip(names, options.models, strict=True))


def _inspect(options: argparse.Namespace) -> int:
    from relu_ops.report import inspect

    _refuse_pairs("inspect", options, ("source", "json"), ("source", "rebuild_check"))
    for name in ("target", "name"):
        if getattr(options, name) and not options.source:
            raise ArgumentError(
                f"inspect: --{name} chooses what --source shows, and that is not given",
                "give --source too, for example --source assembly, or leave it out",
            )
    if options.rebuild_check:
        report = inspect.rebuild_check(options.path)
        print(json.dumps(report, indent=1) if options.json else inspect.render_rebuild(report))
        return FINE if report["identical"] else CHECK_FAILED
    if options.source:
        print(inspect.source(options.path, options.target, options.source, options.name))
        return FINE
    description = inspect.describe(options.path)
    print(json.dumps(description, indent=1) if options.json else inspect.render(description))
    return FINE


def _refuse_pairs(verb: str, options: argparse.Namespace, *pairs: tuple[str, str]) -> None:
    for pair in pairs:
        if all(getattr(options, name) for name in pair):
            first, second = (f"--{name.replace('_', '-')}" for name in pair)
            raise ArgumentError(
                f"{verb}: {first} and {second} do not go together", "leave out one or the other"
            )


def _run(options: argparse.Namespace) -> int:
    from relu_ops.runtime import dispatch

    operator = dispatch.load(
        options.bundle, name=options.name, target=options.target, digest=options.digest
    )
    known = zip(options.inputs, operator.inputs, strict=False)  # the operator counts them
    inputs = [_read_array(path, tensor.dtype) for path, tensor in known]
    result = operator(*inputs, *options.inputs[len(inputs) :])
    results = result if isinstance(result, tuple) else (result,)
    if not options.output:
        for array in results:
            print(array)
        return FINE
    if len(options.output) != len(results):
        raise ArgumentError(
            f"{operator.name} has {counted(len(results), 'output')}; "
            f"--output names {len(options.output)}",
            "give --output once for each output, in their order, or not at all",
        )
    for path, array in zip(options.output, results, strict=True):
        _write_array(path, array)
        _say(f"{path}: {array.dtype.name}{list(array.shape)}, by {operator.target}")
    return FINE


def _read_array(path: str, dtype: str) -> np.ndarray:
    try:
        array: np.ndarray = np.lib.format.open_memmap(path, mode="r")
    except OSError as error:
        raise ArgumentError(
            f"{path}: cannot be read: {error.strerror}", "write one with numpy.save"
        ) from error
    except (ValueError, EOFError) as error:
        raise ArgumentError(
            f"{path}: is not a readable .npy file: {error}",
            "write one with numpy.save, of an array of numbers",
        ) from error
    if dtype == "bfloat16" and array.dtype == np.dtype("V2"):
        # The .npy format has no bfloat16: NumPy writes it as two raw bytes.
        return array.view(DTYPES[dtype].numpy)
    return array


def _write_array(path: str, array: np.ndarray) -> None:
    try:
        with Path(path).open("wb") as file:
            np.save(file, array, allow_pickle=False)
    except OSError as error:
        raise ArgumentError(
            f"{path}: cannot be written: {error.strerror}", "name another file with --output"
        ) from error


def _verify(options: argparse.Namespace) -> int:
    from relu_ops import verification

    report = verification.verify(
        options.path,
        name=options.name,
        target=options.target,
        device=options.device,
        exhaustive=options.exhaustive,
        seed=options.seed,
        case=options.case,
        progress=_progress,
    )
    print(json.dumps(report.to_dict(), indent=1) if options.json else report)
    return FINE if report.ok else CHECK_FAILED


_MEASURED = ("path", "graph", "target", "size", "dtype", "threads", "peer", "mode", "quick")
"""What says what to measure: nothing is where a record is shown."""


def _check_measures_nothing(options: argparse.Namespace) -> None:
    """Refuse what `--show` and `--compare` would leave unheeded."""
    unheeded = {"show": _MEASURED, "compare": (*_MEASURED, "show", "record", "plot")}
    for reading, others in unheeded.items():
        given = [name for name in others if getattr(options, name)]
        if getattr(options, reading) and given:
            shown = given[0] if given[0] == "path" else f"--{given[0]}"
            raise ArgumentError(
                f"bench: --{reading} measures nothing, and {shown} was given as well",
                "leave out one or the other",
            )


def _bench(options: argparse.Namespace) -> int:
    import msgspec

    from relu_ops.bench import command, plots, record, tables

    _check_measures_nothing(options)
    if options.compare:
        rows = record.compare(*(record.read(path) for path in options.compare))
        print(
            json.dumps(msgspec.to_builtins(rows))
            if options.json
            else tables.render_comparison(rows)
        )
        return FINE
    command.check_outputs(options.record, options.plot)
    found = record.read(options.show) if options.show else command.run(options, _progress)
    if options.record:
        record.write(found, options.record)
        _say(f"{options.record}: {len(found.timings)} timings")
    if options.plot:
        pictures = plots.draw(found, options.plot)
        _say(f"{options.plot}: {len(pictures)} pictures")
    print(record.encode(found).decode() if options.json else tables.render(found))
    return FINE


def _tune(options: argparse.Namespace) -> int:
    from relu_ops.bench import environment, tune
    from relu_ops.runtime import tuning

    usage = environment.Usage()
    measured = tune.tune(_progress)
    print(tuning.encode(measured))
    others = usage.share_of_others() or 0.0
    if others > _BUSY:
        _say(f"others had {others:.0%} of the processors: tune again when these are idle")
    if not options.dry_run:
        path = tuning.store(measured)
        _say(f"{path}: written; every process heeds it from now on. Remove it to take it back")
    return FINE


def _config(options: argparse.Namespace) -> int:
    from relu_ops import config

    shown = [value for name, value in config.values().items() if getattr(options, name)]
    if not shown:
        raise ArgumentError("config: nothing was asked for", "for example --cflags --libs")
    print(" ".join(shown))
    return FINE


def _wheel(options: argparse.Namespace) -> int:
    from relu_ops.ship import wheel

    print(wheel.write(options.bundle, options.output, name=options.name, version=options.version))
    return FINE


def _export_kernel(options: argparse.Namespace) -> int:
    from relu_ops.bundle import store as bundles
    from relu_ops.ship import kernels

    name = options.name or Path(options.bundle).name.partition(".")[0]
    version, license = options.version, options.license
    held = bundles.read(options.bundle)
    kernels.export(held, options.folder, name=name, version=version, license=license)
    _say(f"{options.folder}: {', '.join(kernels.variants(held))}")
    return FINE


def _plot(options: argparse.Namespace) -> int:
    from relu_ops.report import plot

    operators = [pair for path in options.paths for pair in _operators_at(Path(path))]
    plot.plot(
        operators,
        options.output,
        low=options.range[0],
        high=options.range[1],
        derivative=not options.no_derivative,
    )
    low, high = options.range
    _say(f"{options.output}: {', '.join(label for label, _ in operators)} from {low:g} to {high:g}")
    return FINE


def _operators_at(path: Path) -> list[tuple[str, Operator]]:
    """The operators of a model or a bundle, each with a label."""
    label = path.name.partition(".")[0]
    if not path.is_dir():
        from relu_ops import jit

        return [(label, jit.compile(path))]
    from relu_ops.bundle import store as bundle
    from relu_ops.runtime import dispatch

    held = bundle.read(path)
    names = held.handle.operators
    labels = [label] if len(names) == 1 else names
    return [
        (shown, dispatch.operator_of(held, name=name))
        for shown, name in zip(labels, names, strict=True)
    ]


def _doctor(options: argparse.Namespace) -> int:
    from relu_ops.report import doctor

    report = doctor.report()
    print(json.dumps(report, indent=1) if options.json else doctor.render(report))
    return FINE


def _cache(options: argparse.Namespace) -> int:
    from relu_ops import cache

    if options.action == "clear":
        _say(f"{cache.directory()}: {cache.clear()} bundles removed")
        return FINE
    for entry in cache.entries():
        names, operators = ", ".join(entry.targets), ", ".join(entry.operators)
        print(f"{entry.path.name[:16]}  {entry.size:>9,}  {names:<10}  {operators}")
    return FINE


def _count(text: str) -> int:
    """Parse a number of elements, for argparse; 64k and 1M are meant as the tables write them."""
    match = re.fullmatch(r"([0-9]{1,18})([kM]?)", text)
    if not match:
        raise argparse.ArgumentTypeError(f"must be a number of elements (not {text!r})")
    return int(match[1]) << {"": 0, "k": 10, "M": 20}[match[2]]


_Option = tuple[tuple[str, ...], dict[str, Any]]

_JSON: _Option = (("--json",), {"action": "store_true", "help": "print JSON"})
_MANY: dict[str, Any] = {"action": "append"}
_NAME: _Option = (("--name",), {"help": "which operator, where the bundle has several"})
_TARGET: _Option = (("--target",), {"help": "a target by name, instead of the best that runs here"})

_VERBS: dict[str, tuple[Callable[[argparse.Namespace], int], str, tuple[_Option, ...]]] = {
    "export": (
        _export,
        "write the ONNX models",
        (
            (("folder",), {"nargs": "?", "default": "models", "help": "default: models"}),
            (("--check",), {"action": "store_true", "help": "write nothing; list what differs"}),
        ),
    ),
    "build": (
        _build,
        "compile models into a bundle; prints its digest",
        (
            (
                ("models",),
                {
                    "nargs": "+",
                    "metavar": "model",
                    "help": "an .onnx file; several make a bundle "
                    "of several operators, named as their files are",
                },
            ),
            (("--name",), _MANY | {"help": "an operator's name, once for each model"}),
            (
                ("--target",),
                {"action": "append", "help": "may be given again; default: native"},
            ),
            (("--output",), {"required": True, "help": "the bundle's directory"}),
        ),
    ),
    "partition": (
        _partition,
        "take out of a network what runs faster here, for onnxruntime: writes a folder",
        (
            (("model",), {"help": "an .onnx file"}),
            (("--output",), {"required": True, "help": "the folder"}),
            (("--target",), _MANY | {"help": "may be given again; default: native"}),
            (
                ("--measure",),
                {"action": "store_true", "help": "time every group here, and take what wins"},
            ),
            (
                ("--input",),
                _MANY | {"metavar": "FILE", "help": "an .npz file with arrays for the inputs"},
            ),
            (
                ("--dim",),
                _MANY | {"metavar": "NAME=EXTENT", "help": "of a symbolic dimension; default: 1"},
            ),
            (("--threads",), {"type": int, "help": "of onnxruntime, where it is measured"}),
            _JSON,
        ),
    ),
    "inspect": (
        _inspect,
        "show a bundle or a model",
        (
            (("path",), {"help": "a bundle, or an .onnx file"}),
            (
                ("--source",),
                {
                    "choices": ["tir", "llvm", "assembly", "cuda"],
                    "help": "show code, by default for the best target that runs here",
                },
            ),
            (
                ("--rebuild-check",),
                {"action": "store_true", "help": "build it again and compare every byte"},
            ),
            (("--target",), {"help": "the target of --source, by name"}),
            (("--name",), {"help": "the operator of --source, where a bundle has several"}),
            _JSON,
        ),
    ),
    "run": (
        _run,
        "run a bundle on .npy files",
        (
            (("bundle",), {"help": "the bundle's directory"}),
            (("inputs",), {"nargs": "*", "default": [], "help": "one .npy file per input"}),
            (("--output",), {"action": "append", "help": "a .npy file per output"}),
            _NAME,
            (("--digest",), {"help": "refuse a bundle with another digest"}),
            _TARGET,
        ),
    ),
    "verify": (
        _verify,
        "check a bundle or a model against every referee, bit for bit",
        (
            (("path",), {"help": "a bundle, or an .onnx file"}),
            (
                ("--exhaustive",),
                {"action": "store_true", "help": "check every bit pattern of one input"},
            ),
            (("--device",), {"default": "cpu", "help": "cpu (the default), cuda or cuda:N"}),
            (("--seed",), {"type": int, "default": 0, "help": "of the random draws"}),
            (("--case",), {"type": int, "help": "only the case of this number"}),
            _NAME,
            _TARGET,
            _JSON,
        ),
    ),
    "bench": (
        _bench,
        "time graphs, a bundle or a model against what else could be used, and the machine's limit",
        (
            (("path",), {"nargs": "?", "help": "a bundle or an .onnx file, instead of --graph"}),
            (("--graph",), _MANY | {"help": "a case of the benchmark; default: all"}),
            (("--target",), _MANY | {"help": "a target by name; default: the best here"}),
            (("--size",), _MANY | {"type": _count, "help": "elements: 65536, 64k, 1M"}),
            (("--dtype",), _MANY | {"help": "a dtype of the cases; default: the first of each"}),
            (("--threads",), {"help": "how many threads everybody may use"}),
            (("--peer",), _MANY | {"help": "who takes part; default: all that are installed"}),
            (
                ("--mode",),
                _MANY | {"choices": ["warm", "cold", "consume"], "help": "default: warm"},
            ),
            (("--quick",), {"action": "store_true", "help": "a look, in under two minutes"}),
            (("--record",), {"metavar": "FILE", "help": "write all samples to a file"}),
            (("--plot",), {"metavar": "FOLDER", "help": "draw pictures into a folder"}),
            (("--show",), {"metavar": "FILE", "help": "measure nothing; show a record"}),
            (
                ("--compare",),
                {"nargs": 2, "metavar": ("A", "B"), "help": "measure nothing; compare records"},
            ),
            _JSON,
        ),
    ),
    "tune": (
        _tune,
        "measure from which sizes on threads and streaming stores pay here, and keep it",
        ((("--dry-run",), {"action": "store_true", "help": "measure, and store nothing"}),),
    ),
    "plot": (
        _plot,
        "draw operators of one input, and their derivatives",
        (
            (("paths",), {"nargs": "+", "help": "bundles or .onnx files"}),
            (("--output",), {"required": True, "help": "a .png or .svg file"}),
            (
                ("--range",),
                {
                    "nargs": 2,
                    "type": float,
                    "default": [-10.0, 10.0],
                    "metavar": ("LOW", "HIGH"),
                    "help": "of x; default: -10 10",
                },
            ),
            (("--no-derivative",), {"action": "store_true", "help": "draw the functions alone"}),
        ),
    ),
    "doctor": (_doctor, "say what is installed and what this machine can do", (_JSON,)),
    "cache": (
        _cache,
        "list or clear the compile cache",
        ((("action",), {"choices": ["list", "clear"]}),),
    ),
    "wheel": (
        _wheel,
        "pack a bundle as a Python wheel, whose package has load(); prints its path",
        (
            (("bundle",), {"help": "the bundle's directory"}),
            (("--name",), {"required": True, "help": "of the distribution: leaky-demo"}),
            (("--version",), {"required": True, "help": "of the distribution: 1.0"}),
            (("--output",), {"default": ".", "help": "the folder to write to; default: here"}),
        ),
    ),
    "export-kernel": (
        _export_kernel,
        "write a bundle as a folder that the `kernels` package loads",
        (
            (("bundle",), {"help": "the bundle's directory"}),
            (("folder",), {"help": "where to write; a new folder"}),
            (("--name",), {"help": "the kernel's: leaky-demo; default: the bundle's"}),
            (("--version",), {"type": int, "default": 1, "help": "the kernel's; default: 1"}),
            (("--license",), {"default": "unknown", "help": "of the models: apache-2.0"}),
        ),
    ),
    "config": (
        _config,
        "print how to compile and link a C or C++ program that calls relu_ops.h",
        (
            (("--cflags",), {"action": "store_true", "help": "options to compile with"}),
            (("--libs",), {"action": "store_true", "help": "options to link with"}),
            (("--include-dir",), {"action": "store_true", "help": "the folder of the headers"}),
            (("--library",), {"action": "store_true", "help": "the path of librelu_ops.so"}),
            (
                ("--cmake-dir",),
                {"action": "store_true", "help": "for cmake -Drelu_ops_DIR=..."},
            ),
            (
                ("--pkg-config-path",),
                {"action": "store_true", "help": "what to add to PKG_CONFIG_PATH"},
            ),
        ),
    ),
}
"""Every verb: what runs it, what it is for, and its options."""
