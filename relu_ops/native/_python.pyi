"""The Python face of the native core: see python.c, include/relu_ops.h."""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Self, final

import numpy as np

LIMITS: dict[str, int]
"""The bounds of bounds.h, by name: {"OPERANDS": 1024, ...}."""

VERSION: str

@final
class Bundle:
    """A bundle whose files were read and checked against their digests."""

    @property
    def digest(self) -> str: ...
    @property
    def files(self) -> dict[str, bytes]:
        """A new dictionary of copies, SHA256SUMS among them."""
    @property
    def targets(self) -> tuple[str, ...]: ...
    @property
    def operators(self) -> tuple[str, ...]: ...
    def choose(
        self, architecture: str | None = None, features: Collection[str] | None = None
    ) -> str: ...

def read_bundle(path: str | bytes, digest: str | None = None) -> Bundle: ...
def open_files(shown: str, files: Mapping[str, bytes], digest: str | None = None) -> Bundle: ...
def open_image(shown: str, image: bytes, digest: str | None = None) -> Bundle: ...
def processor_features() -> frozenset[str]: ...
def capsule_row(capsule: Any, /) -> tuple[Any, ...]:
    """What a capsule of DLPack holds, which stays whose it is.

    (address, code, bits, lanes, type of device, its number, shape, strides or None, read-only)
    """

@final
class TensorFunction:
    """Operators, by dtype, as one function of torch's tensors (and floats behind the first).

    Calling it gives the result; NotImplemented where a gradient is to be recorded; None where
    somebody listens, or the arguments are anything but plain tensors.
    """

    def __new__(
        cls,
        listeners: tuple[tuple[Any, ...], ...],
        others: tuple[tuple[Any, ...], ...],
        levels: dict[str, Any],
    ) -> Self: ...
    def __call__(self, *arguments: Any) -> Any: ...
    def remember(self, operator: Operator) -> None: ...

class Operator:
    """See relu_ops.runtime.operator, which documents it for people."""

    name: str
    __name__: str
    target: str
    wanted_target: str | None
    device: str
    bundle: Any
    def __new__(
        cls,
        handle: Bundle,
        name: str | None = None,
        target: str | None = None,
        bundle: Any = None,
        cuda: int = -1,
    ) -> Self: ...
    @property
    def inputs(self) -> tuple[Any, ...]: ...
    @property
    def outputs(self) -> tuple[Any, ...]: ...
    def __call__(
        self, *inputs: Any, out: Any = None, threads: int | None = None, stream: Any = None
    ) -> Any: ...
    def bind(
        self, *inputs: Any, out: Any = None, threads: int | None = None, stream: Any = None
    ) -> BoundCall: ...
    def compute_on(self, rows: tuple[Any, ...], stream: int) -> None:
        """Compute on rows of capsule_row, inputs then outputs; raises what the core says."""
    def bound_on(
        self,
        rows: tuple[Any, ...],
        stream: int | None,
        stream_of: Callable[[], int],
        of_torch: bool,
        inputs: tuple[Any, ...],
        out: Any,
        held: Any,
    ) -> BoundCall:
        """A bound call on rows of capsule_row; stream_of: the stream of each run, for no stream."""
    def output_shapes(self, shapes: Sequence[tuple[int, ...]]) -> list[tuple[int, ...]]:
        """The shapes of the outputs for inputs of some shapes; raises ArgumentError."""
    def compute(self, arrays: tuple[np.ndarray, ...], threads: int = 0) -> None:
        """Compute on NumPy arrays as they lie, inputs then outputs; raises what the core says."""
    def bound(
        self, arrays: tuple[np.ndarray, ...], threads: int, inputs: tuple[Any, ...], out: Any
    ) -> BoundCall:
        """A bound call on NumPy arrays as they lie, which it holds."""

@final
class BoundCall:
    name: str
    inputs: tuple[Any, ...]
    out: Any
    def __call__(self) -> None: ...

@final
class Standard:
    """A Python function of an array, (x, out=None) or (x, alpha=0.01, out=None), answered faster.

    An exact NumPy array whose dtype has an operator that was remembered goes to that; everything
    else to the function.
    """

    def __new__(cls, function: Callable[..., Any], has_slope: bool, /) -> Standard: ...
    def __call__(self, x: Any, *arguments: Any, **keywords: Any) -> Any: ...
    def remember(self, number: int, operator: Operator, takes_slope: bool, /) -> None: ...

def xla_register(number: int, operator: Operator, /) -> None:
    """Let XLA's handler find an operator by a number. It lives from then on."""

def xla_handler(major: int, minor: int, /) -> Any:
    """XLA's handler as a capsule, of a version of XLA's interface."""

def packed(bundle: Bundle, name: str, target: str, raised: int, /) -> tuple[int, int, int]: ...
def default_settings() -> tuple[int, int, int, int]: ...
def get_settings() -> tuple[int, int, int, int]: ...
def set_settings(threads: int, parallel_bytes: int, stream_bytes: int, wake_bytes: int) -> None: ...
