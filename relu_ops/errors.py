"""Every error that relu_ops raises, in one place.

A message names the thing, what it is and what it must be; the hint says what to do. A user's
mistake and a broken invariant are different kinds: whatever is not a `ReluOpsError` is a bug.
"""

from __future__ import annotations

from collections.abc import Collection


class ReluOpsError(Exception):
    """The base of every error that relu_ops raises on purpose.

    Attributes:
        message: What is wrong, in one line or a short list.
        hint: What to do about it, or None.
    """

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message if hint is None else f"{message}\nhint: {hint}")
        self.message = message
        self.hint = hint

    def __reduce__(self) -> tuple[type, tuple[str, str | None]]:
        return type(self), (self.message, self.hint)


class ArgumentError(ReluOpsError, ValueError):
    """An argument has the right type and a wrong value (a shape, a number, a name)."""


class ArgumentTypeError(ReluOpsError, TypeError):
    """An argument has the wrong type or dtype."""


class ModelError(ReluOpsError, ValueError):
    """A model is not valid ONNX: malformed, truncated, cyclic, ill-typed or reaching outside."""


class UnsupportedError(ModelError):
    """A model is valid ONNX, and outside what relu_ops compiles."""


class BundleError(ReluOpsError, ValueError):
    """A bundle is missing, damaged, or not what its SHA256SUMS says."""


class TargetError(ReluOpsError, ValueError):
    """A target is unknown, or no variant of a bundle can run on this machine."""


class BuildError(ReluOpsError, RuntimeError):
    """Compiling or linking failed, or a tool that it needs is missing."""


class DeviceError(ReluOpsError, RuntimeError):
    """A device or its driver failed: what was asked of it, its name and its architecture."""


class HostError(ReluOpsError, ConnectionError):
    """Another machine cannot be reached, has no relu_ops that fits, or was lost."""


class SystemRefusalError(ReluOpsError, OSError):
    """The operating system refused something: executable memory, a thread, a file descriptor."""


class CacheError(ReluOpsError, OSError):
    """The compile cache cannot be used and no other way leads to a result."""


class MissingDependencyError(ReluOpsError, ImportError):
    """An optional package is needed for what was asked, and is not installed."""


def choice(
    what: str, value: str, allowed: Collection[str], error: type[ReluOpsError] = ArgumentError
) -> str:
    """Return a name that is one of those allowed.

    Args:
        what: What it names, as the subject of the message.
        value: The name.
        allowed: Every name that there is.
        error: What to raise.

    Raises:
        ReluOpsError: As `error`: it is none of them; the message lists them.
    """
    import difflib

    if isinstance(value, str) and value in allowed:
        return value
    near = difflib.get_close_matches(str(value), allowed, 1)
    hint = f"did you mean {near[0]!r}?" if near else "pass one of these names"
    raise error(f"{what} must be one of {', '.join(allowed)} (not {value!r})", hint)


def counted(number: int, noun: str) -> str:
    """Return a number of things, in words.

    >>> counted(1, "input"), counted(2, "input")
    ('1 input', '2 inputs')
    """
    return f"{number} {noun}{'' if number == 1 else 's'}"


def require(module: str, extra: str, purpose: str) -> None:
    """Raise `MissingDependencyError` unless `module` can be imported.

    Args:
        module: The name to import.
        extra: The extra of relu_ops that installs it.
        purpose: What it is needed for, as the subject of the message.

    Raises:
        MissingDependencyError: `module` is not installed.
    """
    import importlib.util

    if importlib.util.find_spec(module) is None:
        raise MissingDependencyError(
            f"{purpose} needs the package {module}, which is not installed",
            f"pip install 'relu_ops[{extra}]'",
        )
