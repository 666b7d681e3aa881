"""Kernels for CUDA devices, compiled by NVRTC."""
