"""How an image lies in a file: native/image.h, in NumPy's terms.

Knows NumPy alone. A test compares every field with the C compiler's.
"""

from __future__ import annotations

import numpy as np

MAGIC, FORMAT = b"relu_ops", 2
X86_64, AARCH64, CUDA = 1, 2, 3

LINE = 64
"""What code, its entry points and arrays begin at multiples of: a line of the caches."""


def _layout(*fields: tuple[str, str | np.dtype]) -> np.dtype:
    return np.dtype(list(fields))


TABLE = _layout(("at", "<u4"), ("count", "<u4"))
TEXT = _layout(("at", "<u4"), ("length", "<u4"))
HEADER = _layout(
    *(("magic", "S8"), ("format", "<u4"), ("semantics", "<u4"), ("size", "<u8")),
    *(("machine", "<u4"), ("reserved", "<u4"), ("target", TEXT), ("requires_", TABLE)),
    *(("operators", TABLE), ("code_at", "<u4"), ("code_size", "<u4")),
)
OPERATOR = _layout(
    *(("name", TEXT), ("inputs", TABLE), ("outputs", TABLE), ("output_terms", TABLE)),
    *(("requirements", TABLE), ("leaves", TABLE), ("itemsizes", TABLE), ("kernels", TABLE)),
    *(("symbols", TABLE), ("vector_bytes", "<u4"), ("reserved", "<u4")),
)
TENSOR = _layout(
    *(("name", TEXT), ("code", "u1"), ("bits", "u1"), ("rank", "<i2"), ("reserved", "<u4")),
    ("dims", TABLE),
)
SEEN = _layout(("block", "<i8"), ("trailing", "<i4"), ("axis", "<i4"))
TERM = _layout(("seen", SEEN), ("input", "<i4"), ("reserved", "<u4"), ("dims", TABLE))
TERMS = _layout(("terms", TABLE))
REQUIREMENT = _layout(("what", TEXT), ("terms", TABLE), ("into", TABLE))
LEAF = _layout(("seen", SEEN), ("input", "<i4"), ("constant_at", "<u4"), ("dims", TABLE))
KERNEL = _layout(("call", "<u4"), ("stream", "<u4"), ("patterns", TABLE))
CUDA_KERNEL = _layout(
    *(("name", TEXT), ("binary_at", "<u4"), ("binary_size", "<u4")),
    *(("lanes", "<u4"), ("unroll", "<u4"), ("patterns", TABLE)),
)
DIM, ITEMSIZE, PATTERN = np.dtype("<i8"), np.dtype("u1"), np.dtype("i1")

STRUCTURES = {
    "ImageTable": TABLE,
    "ImageText": TEXT,
    "ImageHeader": HEADER,
    "ImageOperator": OPERATOR,
    "ImageTensor": TENSOR,
    "ImageSeen": SEEN,
    "ImageTerm": TERM,
    "ImageTerms": TERMS,
    "ImageRequirement": REQUIREMENT,
    "ImageLeaf": LEAF,
    "ImageKernel": KERNEL,
    "ImageCudaKernel": CUDA_KERNEL,
}
"""Every structure that there is, by its name in C."""
