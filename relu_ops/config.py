"""How to compile and link a C or C++ program that calls `relu_ops.h`.

The header, dlpack.h and the library lie in the installed package, beside the extension module.
"""

from __future__ import annotations

import shlex
from pathlib import Path

from relu_ops.errors import BuildError
from relu_ops.native import _python as native


def folder() -> Path:
    """Where `librelu_ops.so` lies, and a folder `include` with the headers.

    Raises:
        BuildError: They are not there.
    """
    found = Path(native.__file__).resolve().parent
    for path in (found / "librelu_ops.so", found / "include" / "relu_ops.h"):
        if not path.is_file():
            raise BuildError(f"{path}: is not there", "install relu_ops again")
    return found


def values() -> dict[str, str]:
    """What `relu-ops config` can print, by the names of its options.

    "cflags" and "libs" are for a shell: options, and paths in quotation marks where they need them.
    The program finds the library where it lies now, by its run path.

    Raises:
        BuildError: As for `folder`.
    """
    where = folder()
    library = shlex.quote(str(where))
    return {
        "cflags": f"-I{shlex.quote(str(where / 'include'))}",
        "libs": f"-L{library} -Wl,-rpath,{library} -lrelu_ops",
        "include_dir": str(where / "include"),
        "library": str(where / "librelu_ops.so"),
        "cmake_dir": str(where / "cmake"),
        "pkg_config_path": str(where / "pkgconfig"),
    }
