"""Every shell block of the documents runs here as it stands, or says above it why not.

    <!-- no-run: REASON -->

A command that takes minutes ends with `# minutes`: it runs behind the marker. The one that passes
the tests is run by `.ci/run`, which takes it out of the README.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import textwrap
from dataclasses import dataclass
from pathlib import Path

import checkout
import numpy as np
import pytest

from relu_ops import compiler, graphs

ROOT = Path(__file__).resolve().parents[1]
PAGES = [*ROOT.glob("*.md"), *sorted((ROOT / "docs").rglob("*.md"))]
LANGUAGES = ("sh", "bash", "shell", "console")
REASON = re.compile(r"<!-- no-run: (?P<reason>\S.{10,}) -->")
TESTS, MAIN = "<!-- test-command -->", "<!-- main-command -->"
SLOW = "# minutes"


@dataclass(frozen=True)
class Block:
    page: str
    line: int
    above: str
    commands: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"

    @property
    def is_run(self) -> bool:
        return not REASON.fullmatch(self.above) and self.above not in (TESTS, MAIN)


def blocks_of(page: Path) -> list[Block]:
    lines = page.read_text(encoding="utf-8").splitlines()
    name = str(page.relative_to(ROOT))
    found, start = [], None
    for number, line in enumerate(lines):
        if start is None and line.strip().removeprefix("```") in LANGUAGES:
            start = number
        elif start is not None and line.strip() == "```":
            commands = tuple(textwrap.dedent("\n".join(lines[start + 1 : number])).split("\n"))
            found.append(Block(name, start + 1, lines[start - 1].strip(), commands))
            start = None
    return found


BLOCKS = [block for page in PAGES for block in blocks_of(page)]
RUN = [block for block in BLOCKS if block.is_run]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a reader stands: an environment in .venv, a bundle and an array."""
    if not Path(sys.prefix, "bin", "activate").is_file():
        pytest.skip("the documents' commands run in a virtual environment, and this is none")
    folder = tmp_path_factory.mktemp("reader")
    (folder / ".venv").symlink_to(sys.prefix)
    compiler.build(graphs.leaky_relu(), ["x86-64-v3"], folder / "leaky.bundle")
    np.save(folder / "x.npy", np.linspace(-10, 10, 21, dtype=np.float32))
    return folder


def run(commands: list[str], folder: Path) -> None:
    path = f"{sys.prefix}/bin{os.pathsep}{os.environ['PATH']}"
    # Hosts of the documents are this machine: ssh is a program that stands in for it.
    ssh = f"{sys.executable} {Path(__file__).with_name('stand_in_ssh.py')}"
    own = {"PATH": path, "RELU_OPS_SSH": ssh, "RELU_OPS_TUNING": str(folder / "tuning.json")}
    environment = {**os.environ, **own}
    environment.pop("PYTHONPATH", None)  # it would name this checkout
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", "\n".join(commands)],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("block", RUN, ids=str)
def test_a_block_runs(block: Block, folder: Path) -> None:
    run([command for command in block.commands if not command.endswith(SLOW)], folder)


@pytest.mark.exhaustive
@pytest.mark.parametrize("block", RUN, ids=str)
def test_a_block_runs_whole(block: Block, folder: Path) -> None:
    run(list(block.commands), folder)


def test_the_main_command_runs_in_a_fresh_checkout(tmp_path: Path) -> None:
    """As a newcomer: a clone, and the first command of the README."""
    (main,) = (block for block in BLOCKS if block.above == MAIN)
    clone = checkout.copy_to(tmp_path / "relu_ops")
    run(list(main.commands), clone)


def test_what_is_not_run_is_run_by_others_or_says_why() -> None:
    apart = [block.above for block in BLOCKS if not block.is_run]
    assert apart.count(TESTS) == apart.count(MAIN) == 1
    assert TESTS in (ROOT / ".ci" / "run").read_text()
    assert len(BLOCKS) - len(apart) >= 5


def test_a_block_that_fails_is_seen(tmp_path: Path) -> None:
    page = ROOT / "README.md"
    (block,) = (b for b in blocks_of(page) if b.is_run and "export models" in b.commands[2])
    with pytest.raises(AssertionError, match="no-such-model"):
        run([block.commands[2].replace("export models", "plot no-such-model.onnx")], tmp_path)
