"""Kernels for AArch64."""
