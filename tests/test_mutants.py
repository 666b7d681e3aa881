"""Every mutant of the table is killed: the tests that it names fail on it, and pass without it.

The sources are copied, one text of the copy is changed, and the named tests run there, in another
process, on what was changed. A mutant in C is compiled anew: by the tests that build the runtime
themselves, or by CMake for those that need the extension.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from mutants import MUTANTS, Mutant

from relu_ops.native import _python as native

ROOT = Path(__file__).parents[1]
COPIED = ("relu_ops", "tests", "pyproject.toml", "CMakeLists.txt")
BUILDS_ITSELF = ("tests/test_native.py", "tests/test_aarch64.py")
"""Their tests compile the runtime's sources where they lie."""

SAMPLE = ("verify takes any number for a NaN", "build replaces a folder that is no bundle")
"""What the default run tries, of those that are quick."""

_SITECUSTOMIZE = """
import sys
# What an editable installation puts there leads to the sources, whatever stands on the path.
sys.meta_path[:] = [f for f in sys.meta_path if "editable" not in type(f).__module__]
"""


@dataclass(frozen=True)
class Copy:
    """The sources in a folder of their own, with the libraries that the tests use here."""

    folder: Path

    @property
    def environment(self) -> dict[str, str]:
        """Where Python, and every child that it starts, finds the copy."""
        # Compiled modules are told apart by size and second: two mutants may agree in both.
        here = {"PYTHONPATH": str(self.folder), "PYTHONDONTWRITEBYTECODE": "1"}
        return {**os.environ, **here}

    @contextmanager
    def changed(self, mutant: Mutant) -> Iterator[None]:
        """For a while, one text is another one."""
        path = self.folder / mutant.file
        whole = path.read_text()
        path.write_text(whole.replace(mutant.before, mutant.after))
        try:
            if needs_cmake(mutant):
                self.build()
            yield
        finally:
            path.write_text(whole)
            copy_libraries(self.folder / "kept", self.libraries)

    @property
    def libraries(self) -> Path:
        return self.folder / "relu_ops" / "native"

    def build(self) -> None:
        """Compile what was changed since it was compiled last."""
        build = self.folder / "build"
        if not build.exists():
            python = f"-DPython_EXECUTABLE={sys.executable}"
            checked("cmake", "-S", self.folder, "-B", build, python)
        checked("cmake", "--build", build)
        copy_libraries(build, self.libraries)

    def keep(self) -> None:
        """Remember the libraries as they are: after each mutant they come back."""
        (self.folder / "kept").mkdir()
        copy_libraries(self.libraries, self.folder / "kept")

    def outcome(self, tests: Iterable[str]) -> Outcome:
        """What becomes of tests on the copy as it stands."""
        options = ["-q", "-rfps", "-m", "", "-p", "no:cacheprovider", "--tb=short"]
        done = subprocess.run(
            [sys.executable, "-m", "pytest", *options, *sorted(tests)],
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
        )
        passed, failed = (
            set(re.findall(rf"^{word} (tests/.*?)(?: - .*)?$", done.stdout, re.MULTILINE))
            for word in ("PASSED", "FAILED")
        )
        said = f"exit code {done.returncode}\n{done.stdout[-6000:]}{done.stderr[-2000:]}"
        return Outcome(done.returncode, passed - failed, failed, said)


@dataclass(frozen=True)
class Outcome:
    """How pytest ended, the tests that passed and that failed, and what was said."""

    code: int
    passed: set[str]
    failed: set[str]
    said: str


def named(test: str, found: set[str]) -> set[str]:
    """Of some tests those that a name means: one, or all of a function."""
    return {one for one in found if one == test or one.startswith(f"{test}[")}


def copy_libraries(of: Path, to: Path) -> None:
    for library in of.glob("*.so"):
        shutil.copy(library, to)


def checked(*command: object) -> None:
    done = subprocess.run([*map(str, command)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]


def needs_cmake(mutant: Mutant) -> bool:
    own = all(test.startswith(BUILDS_ITSELF) for test in mutant.killers)
    return mutant.file.endswith((".c", ".h", "CMakeLists.txt")) and not own


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Copy:
    made = Copy(tmp_path_factory.mktemp("copy"))
    for name in COPIED:
        if (ROOT / name).is_dir():
            ignored = shutil.ignore_patterns("__pycache__", "*.so")
            shutil.copytree(ROOT / name, made.folder / name, ignore=ignored)
        else:
            shutil.copy(ROOT / name, made.folder)
    installed = Path(native.__file__).parent
    copy_libraries(installed, made.libraries)
    shutil.copytree(installed / "include", made.libraries / "include", dirs_exist_ok=True)
    (made.folder / "sitecustomize.py").write_text(_SITECUSTOMIZE)
    return made


@pytest.fixture(scope="module")
def without(copy: Copy, request: pytest.FixtureRequest) -> Outcome:
    """What becomes of all tests that are to kill something here, without a mutant."""
    calls = (getattr(item, "callspec", None) for item in request.session.items)
    tried = [call.params["mutant"] for call in calls if call and "mutant" in call.params]
    if shutil.which("cmake") and any(map(needs_cmake, tried)):
        copy.build()
    copy.keep()
    return copy.outcome({test for mutant in tried for test in mutant.killers})


# ---------------------------------------------------------------- the table


def test_every_text_occurs_once() -> None:
    for mutant in MUTANTS:
        count = (ROOT / mutant.file).read_text().count(mutant.before)
        assert count == 1, f"{mutant.name}: {count} times in {mutant.file}: {mutant.before}"
        assert mutant.before != mutant.after, mutant.name


def test_every_killer_exists() -> None:
    for mutant in MUTANTS:
        assert mutant.killers, mutant.name
        for test in mutant.killers:
            file, _, name = test.partition("::")
            function = re.escape(name.partition("[")[0])
            content = (ROOT / file).read_text()
            assert re.search(rf"^def {function}\(", content, re.MULTILINE), test


def test_names_of_mutants_differ() -> None:
    names = [mutant.name for mutant in MUTANTS]
    assert len(set(names)) == len(names) and set(SAMPLE) <= set(names)


# ---------------------------------------------------------------- killing


def test_what_runs_is_the_copy(copy: Copy, tmp_path: Path) -> None:
    """In children too; else every mutant would survive."""
    code = "import relu_ops, relu_ops.native._python as native\n"
    code += "print(relu_ops.__file__, native.__file__, flush=True)"
    twice = f"import subprocess, sys; code = {code!r}; exec(code)\n"
    twice += "subprocess.run([sys.executable, '-c', code], check=True)"
    done = subprocess.run(
        [sys.executable, "-c", twice],
        cwd=tmp_path,
        env=copy.environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    paths = done.stdout.split()
    assert len(paths) == 4 and all(Path(p).is_relative_to(copy.folder) for p in paths), paths


def cases() -> list[object]:
    slow = pytest.mark.exhaustive
    return [pytest.param(m, id=m.name, marks=() if m.name in SAMPLE else slow) for m in MUTANTS]


@pytest.mark.parametrize("mutant", cases())
def test_killed(copy: Copy, without: Outcome, mutant: Mutant) -> None:
    if needs_cmake(mutant) and shutil.which("cmake") is None:
        pytest.skip("there is no cmake")
    assert without.code in (0, 1), without.said
    for test in mutant.killers:
        assert not named(test, without.failed), without.said
        if not named(test, without.passed):
            pytest.skip(f"{test} is skipped here")
    with copy.changed(mutant):
        found = copy.outcome(mutant.killers)
    assert found.code == 1, found.said  # who dies of it names no test
    for test in mutant.killers:
        assert named(test, found.failed), found.said
