"""The native runtime: `librelu_ops.so`, the core, and `_python`, the face of it that Python sees.

The C sources lie beside this file; CMakeLists.txt says what is compiled. `include/relu_ops.h` is
the interface for C and C++.
"""

import importlib.util

if importlib.util.find_spec("relu_ops.native._python") is None:
    raise ImportError(
        f"relu_ops is imported from {__path__[0]}, where its native half is not compiled: that is "
        "a source checkout\nhint: run python in another folder, or with -P, to use the installed "
        "package; or install the checkout with pip install -e ."
    )
