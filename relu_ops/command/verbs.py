"""The table of verbs: what runs each, what it is for, and its options."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable
from typing import Any

from relu_ops.command import bundles, measuring, models


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
_ON: tuple[_Option, ...] = (
    (
        ("--on",),
        _MANY | {"metavar": "HOST", "help": "another machine, as ssh knows it; may be given again"},
    ),
    (
        ("--python",),
        {"metavar": "PATH", "help": "the Python there that has relu_ops; default: python3"},
    ),
)
_TARGET: _Option = (("--target",), {"help": "a target by name, instead of the best that runs here"})

VERBS: dict[str, tuple[Callable[[argparse.Namespace], int], str, tuple[_Option, ...]]] = {
    "export": (
        models.export,
        "write the ONNX models",
        (
            (("folder",), {"nargs": "?", "default": "models", "help": "default: models"}),
            (("--check",), {"action": "store_true", "help": "write nothing; list what differs"}),
        ),
    ),
    "build": (
        models.build,
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
        models.partition,
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
        models.inspect,
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
        bundles.run,
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
        measuring.verify,
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
            *_ON,
            _JSON,
        ),
    ),
    "bench": (
        measuring.bench,
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
                {
                    "nargs": "+",
                    "metavar": "FILE",
                    "help": "measure nothing; set records side by side, of one machine or several",
                },
            ),
            *_ON,
            _JSON,
        ),
    ),
    "tune": (
        measuring.tune,
        "measure from which sizes on threads and streaming stores pay here, and keep it",
        ((("--dry-run",), {"action": "store_true", "help": "measure, and store nothing"}),),
    ),
    "plot": (
        models.plot,
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
    "doctor": (bundles.doctor, "say what is installed and what this machine can do", (_JSON,)),
    "cache": (
        bundles.cache,
        "list or clear the compile cache",
        ((("action",), {"choices": ["list", "clear"]}),),
    ),
    "wheel": (
        bundles.wheel,
        "pack a bundle as a Python wheel, whose package has load(); prints its path",
        (
            (("bundle",), {"help": "the bundle's directory"}),
            (("--name",), {"required": True, "help": "of the distribution: leaky-demo"}),
            (("--version",), {"required": True, "help": "of the distribution: 1.0"}),
            (("--output",), {"default": ".", "help": "the folder to write to; default: here"}),
        ),
    ),
    "export-kernel": (
        bundles.export_kernel,
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
        bundles.config,
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
