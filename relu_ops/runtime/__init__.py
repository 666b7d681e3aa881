"""Runs compiled operators. Knows bundles, NumPy and tvm-ffi; never imports the compiler."""
