"""What is released: its metadata, the sdist, and that nothing is released that is not ready."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import tarfile
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import checkout
import programs
import pytest

ROOT = Path(__file__).resolve().parents[1]
ADDRESS = "https://code.example.org/somebody/relu_ops"
WORKFLOW = ROOT / ".github" / "workflows" / "release.yml"
SAMPLE = (
    "tests/test_checkout.py",
    "tests/test_graphs.py",
    "tests/test_release.py::test_the_metadata_say_where_the_project_lives",
    "tests/test_semantics.py",
)
"""Of the sdist, in every run. A release takes more of them: release.TESTS, or all."""

release = programs.load("release")


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkout as `make` has it, before it builds."""
    tree = checkout.copy_to(tmp_path_factory.mktemp("tree") / "relu_ops")
    release.write_addresses(tree, ADDRESS)
    return tree


@pytest.fixture(scope="module")
def sdist(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("build", reason="needs pip install 'relu_ops[release]'")
    return release.build_sdist(Path(sys.executable), tree, tmp_path_factory.mktemp("sdist"))


@pytest.fixture(scope="module")
def unpacked(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("unpacked")
    shutil.unpack_archive(sdist, folder)
    (tree,) = folder.iterdir()
    return tree


# ---------------------------------------------------------------- metadata


@pytest.fixture(scope="module")
def metadata(tree: Path) -> Any:
    build = pytest.importorskip("build.util", reason="needs pip install 'relu_ops[release]'")
    return build.project_wheel_metadata(tree)


def test_the_metadata_say_where_the_project_lives(metadata: Any) -> None:
    there = f"{ADDRESS}/blob/v{metadata['Version']}"
    assert metadata.get_all("Project-URL") == [
        f"Source, {ADDRESS}",
        f"Documentation, {there}/docs/index.md",
        f"Changelog, {there}/CHANGELOG.md",
        f"Issues, {ADDRESS}/issues",
    ]
    assert metadata["Author"] == "relu_ops contributors"
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata["Keywords"] and "," not in metadata["Keywords"].split(",")


def test_the_classifiers_are_those_that_an_index_knows(metadata: Any) -> None:
    known = pytest.importorskip("trove_classifiers").classifiers
    stated = metadata.get_all("Classifier")
    assert stated and not set(stated) - known


class Links(HTMLParser):
    """What a page leads to and shows."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.found += [text for name, text in attributes if name in ("href", "src") and text]


def test_an_index_shows_the_readme_and_its_links_lead_somewhere(metadata: Any) -> None:
    """Rendered as PyPI does it: every link is absolute, and what it leads to is in the tree."""
    markdown = pytest.importorskip("readme_renderer.markdown")
    assert metadata["Description-Content-Type"] == "text/markdown"
    page = markdown.render(metadata.get_payload())
    assert page is not None and "<h1" in page and "<table>" in page
    links = [link for link in Links(page).found if not link.startswith("#user-content-")]
    inside = f"{ADDRESS}/blob/v{metadata['Version']}/"
    assert f"{inside}docs/semantics.md" in links and len(links) > 15
    for link in links:
        assert link.startswith("https://"), link
        assert not link.startswith(ADDRESS) or (ROOT / link.removeprefix(inside)).exists(), link


def test_no_address_is_made_up_in_the_sources() -> None:
    if not checkout.IS_GIT:
        pytest.skip("a released sdist has the address that it was made with")
    assert "[project.urls]" not in (ROOT / "pyproject.toml").read_text()


# ---------------------------------------------------------------- sdist


def test_the_sdist_holds_the_whole_checkout(sdist: Path) -> None:
    if not checkout.IS_GIT:
        pytest.skip("what belongs in it is what git tracks, and this is no git checkout")
    with tarfile.open(sdist) as archive:
        names = {member.name.partition("/")[2] for member in archive if not member.isdir()}
    assert names == {*checkout.names(), "PKG-INFO"}


def test_an_index_takes_the_sdist(sdist: Path) -> None:
    done = run("twine", "check", "--strict", sdist)
    assert done.returncode == 0 and "PASSED" in done.stdout, done.stdout + done.stderr


def test_a_readme_that_cannot_be_shown_is_refused(tree: Path, tmp_path: Path) -> None:
    """The check can fail: a description of a kind that no index knows."""
    broken = shutil.copytree(tree, tmp_path / "relu_ops")
    project = broken / "pyproject.toml"
    project.write_text(project.read_text().replace("text/markdown", "text/x-rst"))
    made = release.build_sdist(Path(sys.executable), broken, tmp_path / "made")
    assert run("twine", "check", "--strict", made).returncode == 1


def run(module: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", module, *arguments]
    environment = {**os.environ, "NO_COLOR": "1"}
    return subprocess.run(command, capture_output=True, text=True, env=environment)


def test_tests_pass_from_the_sdist(unpacked: Path, tmp_path: Path) -> None:
    """Installed from it, in a folder where there is no git; packages are those of this Python."""
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    python = tmp_path / "venv" / "bin" / "python"
    (site,) = (tmp_path / "venv").glob("lib/python3*/site-packages")
    (site / "others.pth").write_text("\n".join(path for path in sys.path if "-packages" in path))
    install = [python, "-m", "pip", "install", "-q", "--no-deps", "-e", unpacked]
    environment = {name: text for name, text in os.environ.items() if name != "PYTHONPATH"}
    for command in (install, [python, "-m", "pytest", *SAMPLE]):
        done = subprocess.run(
            command, cwd=unpacked, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout and "failed" not in done.stdout, done.stdout


# ---------------------------------------------------------------- what is not ready


def commit(folder: Path, *, tag: str = "") -> None:
    who = ["-c", "user.name=somebody", "-c", "user.email=somebody@example.org"]
    for command in (["add", "-A"], [*who, "commit", "-qm", "x"], *([["tag", tag]] if tag else [])):
        subprocess.run(["git", *command], cwd=folder, check=True)


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A small one with what `prepare` and `make` look at first."""
    if shutil.which("git") is None:
        pytest.skip("there is no git, and a release is made of a commit")
    folder = tmp_path / "repository"
    (folder / "relu_ops").mkdir(parents=True)
    (folder / "relu_ops" / "_version.py").write_text('"""One."""\n\n__version__ = "0.1.0"\n')
    (folder / "CHANGELOG.md").write_text("# Changelog\n\n## Unreleased\n\n- New.\n\n## 0.1.0\n")
    subprocess.run(["git", "init", "-q"], cwd=folder, check=True)
    commit(folder)
    return folder


def test_a_release_is_prepared(repository: Path, tmp_path: Path, capsys: Any) -> None:
    release.prepare(repository, "0.2.0")
    assert capsys.readouterr().out == "git commit -a -m 'Release 0.2.0' && git tag v0.2.0\n"
    changes = (repository / "CHANGELOG.md").read_text()
    assert re.fullmatch(
        r"# Changelog\n\n## 0\.2\.0 \(\d{4}-\d\d-\d\d\)\n\n- New\.\n\n## 0\.1\.0\n", changes
    )
    assert (repository / "relu_ops/_version.py").read_text().endswith('__version__ = "0.2.0"\n')
    commit(repository, tag="v0.2.0")
    assert release.ready_version(repository, tmp_path / "dist", ADDRESS) == "0.2.0"


def refusal(run: Any, *arguments: Any) -> str:
    with pytest.raises(release.NotReady) as caught:
        run(*arguments)
    return str(caught.value)


@pytest.mark.parametrize("version", ["", "1", "1.0", "v1.0.0", "1.0.0-1", "01.0.0", "1.0.0dev"])
def test_a_version_that_is_none(repository: Path, version: str) -> None:
    assert refusal(release.prepare, repository, version) == (
        f"{version!r} is no version: it must be like 0.2.0 or 0.2.0rc1"
    )


def test_nothing_new_is_not_released(repository: Path) -> None:
    release.prepare(repository, "0.2.0")
    assert refusal(release.prepare, repository, "0.3.0") == (
        "CHANGELOG.md has no '## Unreleased' at its top: say there what changed"
    )


def test_what_stands_in_the_way_is_said(repository: Path, tmp_path: Path) -> None:
    made = tmp_path / "dist"

    def why(folder: Path = made, address: str = ADDRESS) -> str:
        return refusal(release.ready_version, repository, folder, address)

    assert why(address="github.com/somebody/relu_ops") == (
        "--repository must be like https://HOST/OWNER/relu_ops (not github.com/somebody/relu_ops)"
    )
    assert why(tmp_path) == f"{tmp_path} is not empty: all that it holds would be uploaded"
    assert why() == (
        "CHANGELOG.md begins with 'Unreleased', and the version is 0.1.0: "
        "python scripts/release.py prepare VERSION"
    )
    release.prepare(repository, "0.2.0")
    assert why() == "the checkout has changes that are not committed: git status names them"
    commit(repository)
    assert why() == "the commit has no tag v0.2.0: git tag v0.2.0"
    shutil.rmtree(repository / ".git")
    assert why().startswith("a release is made of a git checkout: ")


def test_the_program_says_what_is_not_ready(tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "there").touch()
    code = release.main(["make", str(tmp_path), "--repository", ADDRESS])
    assert (code, capsys.readouterr().err) == (
        1,
        f"not ready: {tmp_path} is not empty: all that it holds would be uploaded\n",
    )


@pytest.mark.exhaustive
def test_a_release_is_made(tmp_path: Path) -> None:
    """All of it: the wheel of this Python, and tests that run from the sdist."""
    copy = checkout.copy_to(tmp_path / "relu_ops")
    program = copy / "scripts" / "release.py"
    subprocess.run(["git", "init", "-q"], cwd=copy, check=True)
    subprocess.run([sys.executable, program, "prepare", "97.0.0"], check=True)
    commit(copy, tag="v97.0.0")
    made = tmp_path / "dist"
    options = [made, "--repository", ADDRESS, "--tests", *SAMPLE]
    done = subprocess.run(
        [sys.executable, program, "make", *options], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"python -m twine upload {made}/*\n"
    python = f"cp3{sys.version_info[1]}"
    wheel, sdist = sorted(path.name for path in made.iterdir())
    assert re.fullmatch(rf"relu_ops-97\.0\.0-{python}-{python}-manylinux_2_\d+_x86_64\.whl", wheel)
    assert sdist == "relu_ops-97.0.0.tar.gz"


# ---------------------------------------------------------------- the workflow


def jobs() -> dict[str, Any]:
    yaml = pytest.importorskip("yaml", reason="needs pip install 'relu_ops[test]'")
    workflow = yaml.safe_load(WORKFLOW.read_text(encoding="utf-8"))
    assert workflow["permissions"] == {"contents": "read"}
    assert workflow[True] == {"push": {"tags": ["v*"]}}  # YAML 1.1 reads `on` as true
    return workflow["jobs"]


def test_the_workflow_runs_what_there_is() -> None:
    commands = [step["run"] for job in jobs().values() for step in job["steps"] if "run" in step]
    assert commands
    for command in commands:
        python, program, *arguments = shlex.split(command)
        assert python == "python" and (ROOT / program).is_file(), command
        options = programs.load(Path(program).stem).parser().parse_args(arguments)
        assert options.python == [f"python3.{minor}" for minor in (11, 12, 13, 14)]


def test_the_workflow_makes_wheels_of_the_pythons_that_are_named() -> None:
    (setup,) = (step for step in jobs()["make"]["steps"] if "setup-python" in step.get("uses", ""))
    installed = sorted(setup["with"]["python-version"].split())
    text = (ROOT / "pyproject.toml").read_text()
    assert installed == sorted(re.findall(r'"Programming Language :: Python :: (3\.\d+)"', text))


def test_only_what_publishes_may_ask_for_a_token() -> None:
    publish = jobs()["publish"]
    assert publish["permissions"] == {"id-token": "write"} and publish["needs"] == "make"
    assert publish["environment"] == "pypi"
    assert not [step for step in publish["steps"] if "run" in step]
    assert "permissions" not in jobs()["make"]


def test_every_action_is_pinned() -> None:
    for job in jobs().values():
        for step in job["steps"]:
            assert "run" in step or re.search(r"@(v\d+|release/v1)$", step["uses"]), step
