"""Kernels for processors: what is the same for all of them."""
