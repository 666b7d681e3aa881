"""The native runtime: `librelu_ops.so`, the core, and `_python`, the face of it that Python sees.

The C sources lie beside this file; CMakeLists.txt says what is compiled. `include/relu_ops.h` is
the interface for C and C++.
"""
