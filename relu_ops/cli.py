"""The command line: one verb a task. Data on stdout, talk on stderr.

Exit code 0: fine; 1: a check failed; 2: bad usage, or nothing usable here.
"""

from __future__ import annotations

import argparse
import io
import os
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from relu_ops._version import __version__
from relu_ops.command.terminal import CHECK_FAILED, FINE, UNUSABLE, say
from relu_ops.command.verbs import VERBS
from relu_ops.errors import ReluOpsError, require

__all__ = ["CHECK_FAILED", "FINE", "UNUSABLE", "main", "verbs"]

_DESCRIPTION = "The command line: one verb a task. Data on stdout, talk on stderr."


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
        say(f"relu-ops: {error}")
        return UNUSABLE
    except OSError as error:
        where = "" if error.filename is None else f"{os.fsdecode(error.filename)}: "
        say(f"relu-ops: {where}{error.strerror or error}")
        return UNUSABLE
    except MemoryError as error:
        say(f"relu-ops: there is not enough memory: {error}")
        return UNUSABLE
    except KeyboardInterrupt:
        say("relu-ops: interrupted")
        return 130


def verbs() -> tuple[str, ...]:
    """Every verb, in the order of the help."""
    return tuple(VERBS)


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
    for name, (run, help_text, options) in VERBS.items():
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
