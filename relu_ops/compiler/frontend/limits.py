"""Bounds on what a model may ask for: what an image can hold, and what a small file makes large."""

from __future__ import annotations

from relu_ops.errors import UnsupportedError
from relu_ops.native._python import LIMITS

# What an operator can hold. The runtime has the same bounds.
INPUTS = LIMITS["INPUTS"]
OUTPUTS = LIMITS["OUTPUTS"]
DECLARED_RANK = LIMITS["DECLARED_RANK"]
REQUIREMENTS = LIMITS["REQUIREMENTS"]
NAME_BYTES = LIMITS["TEXT"]

# What a small file could make large.
INLINED_NODES = 100_000  # functions that call each other twice double at every level
CALL_DEPTH = 100
FILE_BYTES = 2**31 - 1  # what a protobuf can be
TEXT_BYTES = 2**26  # the text forms are for small models: their readers take minutes for more
TEXT_DEPTH = 100  # as protobuf has it; onnx's own parser overflows the stack instead
EXTERNAL_BYTES = 2**30  # a model with its data has to fit into a protobuf, 2 GiB
FOLDED_ELEMENTS = 2**24  # a constant lies in the image; what is larger is computed
SHAPE_ELEMENTS = 2**60  # beyond, the bytes of an array are no 64-bit number


def hold(number: int, bound: int, what: str, whose: str = "the model") -> None:
    """Refuse what is more than a bound.

    Args:
        number: How many there are.
        bound: How many there may be.
        what: What they are, in the plural.
        whose: What has them.

    Raises:
        UnsupportedError: There are more; the message has the number and the bound.
    """
    if number > bound:
        raise UnsupportedError(f"{whose} has {number} {what}; it must have at most {bound}")
