"""Makes a release: what an index is given, out of a commit and nothing else.

    python scripts/release.py prepare VERSION
    python scripts/release.py make FOLDER --repository URL [--python PYTHON ...] [--tests FILE ...]

`prepare` writes the version and the changelog's heading; commit and tag that. `make` refuses a
commit that is not ready. It writes the project's address into the metadata, builds the sdist, out
of the sdist a wheel for each Python, checks all of it as an index does, installs the sdist in a
folder of its own and runs its tests there. It uploads nothing, and prints the command that does.
docs/releasing.md says it step by step.

Needs git, a C compiler and the Pythons; what else it needs, it installs apart.
"""

from __future__ import annotations

import argparse
import datetime
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
VERSION = Path("relu_ops", "_version.py")
NUMBER = re.compile(r"(?:0|[1-9]\d*)(?:\.(?:0|[1-9]\d*)){2}(?:(?:a|b|rc)[1-9]\d*)?")
REPOSITORY = re.compile(r"https://[\w.-]+(?:/[\w.-]+)+")
TESTS = (
    *("tests/test_bundle.py", "tests/test_checkout.py", "tests/test_docs.py"),
    *("tests/test_graphs.py", "tests/test_native.py", "tests/test_release.py"),
    *("tests/test_semantics.py", "tests/test_site.py", "tests/test_standard.py"),
)
"""Of the sdist: those that read what stands beside the package, and some of what runs."""

MARK = "\n# Written by scripts/release.py."
ADDRESSES = """
[project.urls]
Source = "{repository}"
Documentation = "{repository}/blob/v{version}/docs/index.md"
Changelog = "{repository}/blob/v{version}/CHANGELOG.md"
Issues = "{repository}/issues"

[tool.scikit-build.metadata.readme]
provider = "scikit_build_core.metadata.fancy_pypi_readme"

[tool.hatch.metadata.hooks.fancy-pypi-readme]
content-type = "text/markdown"
fragments = [{{ path = "README.md" }}]
substitutions = [
  {{ pattern = '\\]\\((?![a-z]+:)([^)\\s]+)', replacement = ']({repository}/blob/v{version}/\\1' }},
]
"""
"""What a release adds to pyproject.toml: an index has nothing that the README could link to."""


class NotReady(Exception):
    """What stands in the way of a release, and what to do."""


def main(arguments: list[str] | None = None) -> int:
    """Prepare or make a release."""
    options = parser().parse_args(arguments)
    try:
        options.run(options)
    except NotReady as error:
        print(f"not ready: {error}", file=sys.stderr)
        return 1
    except subprocess.CalledProcessError as error:
        print(f"failed: {shlex.join(map(str, error.cmd))}", file=sys.stderr)
        return 1
    return 0


def parser() -> argparse.ArgumentParser:
    """The command line."""
    raw = argparse.RawTextHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    verbs = parser.add_subparsers(required=True, metavar="VERB")
    first = verbs.add_parser("prepare", help="write the version and the changelog's heading")
    first.add_argument("version", help="such as 0.2.0 or 0.2.0rc1")
    first.set_defaults(run=lambda options: prepare(ROOT, options.version))
    second = verbs.add_parser("make", help="build and test all that is uploaded")
    second.add_argument("folder", type=Path, help="where to write; it must be empty, or new")
    second.add_argument("--repository", required=True, help="where the project lives: https://...")
    second.add_argument("--python", nargs="+", default=[sys.executable], help="for which Pythons")
    second.add_argument("--tests", nargs="*", default=TESTS, help="of the sdist; none named: all")
    second.set_defaults(run=make)
    return parser


# ---------------------------------------------------------------- prepare


def prepare(root: Path, version: str) -> None:
    """Write the version, and give what is unreleased its heading."""
    if not NUMBER.fullmatch(version):
        raise NotReady(f"{version!r} is no version: it must be like 0.2.0 or 0.2.0rc1")
    changes = (root / "CHANGELOG.md").read_text(encoding="utf-8")
    if heading(changes) != "Unreleased":
        raise NotReady("CHANGELOG.md has no '## Unreleased' at its top: say there what changed")
    today = datetime.datetime.now(datetime.UTC).date()
    dated = changes.replace("## Unreleased", f"## {version} ({today})", 1)
    (root / "CHANGELOG.md").write_text(dated, encoding="utf-8")
    source = (root / VERSION).read_text(encoding="utf-8")
    (root / VERSION).write_text(source.replace(version_in(source), version), encoding="utf-8")
    print(f"git commit -a -m 'Release {version}' && git tag v{version}")


def heading(changes: str) -> str:
    """The changelog's newest heading."""
    found = re.search(r"^## (.*)$", changes, re.MULTILINE)
    return found[1] if found else ""


def version_in(source: str) -> str:
    """What relu_ops/_version.py says."""
    found = re.search(r'^__version__ = "(.*)"$', source, re.MULTILINE)
    assert found, VERSION
    return found[1]


# ---------------------------------------------------------------- make


def make(options: argparse.Namespace) -> None:
    """Build and test all that is uploaded."""
    version = ready_version(ROOT, options.folder, options.repository)
    with tempfile.TemporaryDirectory() as scratch:
        tree = exported(ROOT, Path(scratch, f"relu_ops-{version}"))
        write_addresses(tree, options.repository)
        tools = environment(Path(scratch, "tools"), f"{tree}[release]")
        sdist = build_sdist(tools, tree, options.folder)
        wheels = tree / "scripts" / "build_wheel.py"
        do(tools, wheels, options.folder, "--source", sdist, "--python", *options.python)
        check(tools, options.folder)
        test(sdist, Path(scratch), options.tests)
    print(f"python -m twine upload {options.folder}/*")


def ready_version(root: Path, folder: Path, repository: str) -> str:
    """The version to release, where commit, tag and changelog agree on it."""
    version = version_in((root / VERSION).read_text(encoding="utf-8"))
    changes = heading((root / "CHANGELOG.md").read_text(encoding="utf-8"))
    if not REPOSITORY.fullmatch(repository):
        raise NotReady(f"--repository must be like https://HOST/OWNER/relu_ops (not {repository})")
    if folder.exists() and any(folder.iterdir()):
        raise NotReady(f"{folder} is not empty: all that it holds would be uploaded")
    if git(root, "status", "--porcelain"):
        raise NotReady("the checkout has changes that are not committed: git status names them")
    if not changes.startswith(f"{version} ("):
        raise NotReady(
            f"CHANGELOG.md begins with {changes!r}, and the version is {version}: "
            "python scripts/release.py prepare VERSION"
        )
    if f"v{version}" not in git(root, "tag", "--points-at", "HEAD").split():
        raise NotReady(f"the commit has no tag v{version}: git tag v{version}")
    return version


def git(root: Path, *arguments: str) -> str:
    """What git says."""
    done = subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True)
    if done.returncode:
        raise NotReady(f"a release is made of a git checkout: {done.stderr.strip()}")
    return done.stdout


def exported(root: Path, tree: Path) -> Path:
    """The commit's files, in a folder of their own."""
    archive = tree.with_suffix(".tar")
    git(root, "archive", "--format=tar", f"--output={archive}", "HEAD")
    shutil.unpack_archive(archive, tree)
    return tree


def write_addresses(tree: Path, repository: str) -> None:
    """Say in the metadata where the project lives, and let the README's links lead there."""
    path = tree / "pyproject.toml"
    text = path.read_text(encoding="utf-8").partition(MARK)[0]  # an sdist has others
    text = text.replace('readme = "README.md"\n', "")
    text = text.replace('dynamic = ["version"]', 'dynamic = ["readme", "version"]')
    assert 'dynamic = ["readme", "version"]' in text and "\nreadme" not in text, path
    version = version_in((tree / VERSION).read_text(encoding="utf-8"))
    text += MARK + ADDRESSES.format(repository=repository, version=version)
    path.write_text(text, encoding="utf-8")


def environment(folder: Path, *packages: str) -> Path:
    """A new virtual environment with some packages; the Python in it."""
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    do(folder / "bin" / "python", "-m", "pip", "install", "-q", *packages)
    return folder / "bin" / "python"


def build_sdist(python: Path, tree: Path, folder: Path) -> Path:
    """The source distribution."""
    folder.mkdir(parents=True, exist_ok=True)
    do(python, "-m", "build", "--sdist", "-o", folder, tree)
    (sdist,) = folder.glob("*.tar.gz")
    return sdist


def check(python: Path, folder: Path) -> None:
    """Ask those who know what an index takes, and what a wheel may hold."""
    wheels = sorted(folder.glob("*.whl"))
    do(python, "-m", "twine", "check", "--strict", *folder.iterdir())
    do(python, "-m", "check_wheel_contents", *wheels)
    for wheel in wheels:
        do(python, "-m", "auditwheel", "show", wheel)


def test(sdist: Path, scratch: Path, tests: list[str]) -> None:
    """Install the sdist as the README says it of a checkout, and run tests of it."""
    shutil.unpack_archive(sdist, scratch / "sdist")
    (tree,) = (scratch / "sdist").iterdir()
    subprocess.run([sys.executable, "-m", "venv", tree / ".venv"], check=True)
    python = tree / ".venv" / "bin" / "python"
    do(python, "-m", "pip", "install", "-q", "-e", ".[test]", cwd=tree)
    do(python, "-m", "pytest", *tests, cwd=tree)


def do(*command: str | Path, cwd: Path | None = None) -> None:
    """Run a command; what it says goes to stderr, and its failure ends this program."""
    environment = {name: text for name, text in os.environ.items() if name != "PYTHONPATH"}
    subprocess.run(command, check=True, cwd=cwd, env=environment, stdout=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
