"""Versions: that of the package, in one place, and those of the packages that are installed."""

__version__ = "0.1.0"


def installed_version(package: str) -> str | None:
    """The version of a package; None where it is not installed."""
    import importlib.metadata  # takes milliseconds, and is rarely needed

    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
