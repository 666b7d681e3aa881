"""The documentation runs: what its Python blocks print is what stands below them."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[1]
IMAGES = ROOT / "docs" / "images"
PAGES = [*ROOT.glob("*.md"), *sorted((ROOT / "docs").rglob("*.md"))]
NO_RUN = "<!-- no-run -->"
NEEDED = {"torch.md": "torch", "jax.md": "jax"}
"""Pages whose blocks need a package that a test environment may lack."""


@dataclass(frozen=True)
class Block:
    """A Python block: its code, what stands below it, and the line it begins at."""

    code: str
    expected: str
    line: int


def fences(text: str) -> list[tuple[str, int, int]]:
    """Language, first and last line of every fenced block, the fences included."""
    found, start, language = [], -1, ""
    for number, line in enumerate(text.splitlines()):
        if start < 0 and (match := re.fullmatch(r"```(\S*).*", line)):
            start, language = number, match[1]
        elif start >= 0 and line == "```":
            found.append((language, start, number))
            start = -1
    assert start < 0, f"the block at line {start + 1} has no end"
    return found


def blocks_of(text: str) -> list[Block]:
    """The Python blocks to run, each with the text block that follows it directly, if any."""
    lines, found = text.splitlines(), fences(text)
    blocks = []
    for index, (language, start, end) in enumerate(found):
        if language != "python" or (start and lines[start - 1].strip() == NO_RUN):
            continue
        expected = ""
        if index + 1 < len(found):
            language, first, last = found[index + 1]
            if language == "text" and not "".join(lines[end + 1 : first]).strip():
                expected = "\n".join(lines[first + 1 : last])
        blocks.append(Block("\n".join(lines[start + 1 : end]), expected, start + 2))
    return blocks


def run(block: Block, namespace: dict[str, Any], name: str) -> str:
    printed = io.StringIO()
    code = "\n" * (block.line - 1) + block.code  # an error names the line of the page
    with contextlib.redirect_stdout(printed):
        exec(compile(code, name, "exec"), namespace)
    return printed.getvalue().rstrip("\n")


def check(text: str, name: str) -> int:
    """Run the blocks of a page in one namespace; return how many there were."""
    namespace: dict[str, Any] = {"__name__": "__main__"}
    blocks = blocks_of(text)
    with np.printoptions():  # a page may set them, for itself
        for block in blocks:
            assert run(block, namespace, name) == block.expected, f"{name}, line {block.line}"
    return len(blocks)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_blocks_print_what_stands_below_them(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if (needed := NEEDED.get(page.name)) and importlib.util.find_spec(needed) is None:
        pytest.skip(f"{needed} is not installed: pip install 'relu_ops[{needed}]'")
    monkeypatch.chdir(tmp_path)
    check(page.read_text(encoding="utf-8"), str(page))


def test_the_tour_and_the_readme_have_blocks() -> None:
    counts = {
        page.name: len(blocks_of(page.read_text(encoding="utf-8")))
        for page in (ROOT / "README.md", ROOT / "docs" / "relu.md")
    }
    assert all(counts.values()), counts


@pytest.mark.parametrize(
    "text",
    [
        "```python\nprint(1)\n```\n```text\n2\n```\n",
        "```python\nprint(1)\n```\n",
        "```python\nprint(1)\n```\n\nAnd then:\n\n```text\n1\n```\n",
        "```python\npass\n```\n\n```text\n1\n```\n",
        "```python\nx = 1\n```\n```python\nprint(x)\n```\n```text\n2\n```\n",
    ],
)
def test_a_page_that_says_something_else_is_refused(text: str) -> None:
    with pytest.raises(AssertionError, match=r"page\.md, line \d"):
        check(text, "page.md")


def test_a_good_page_passes_and_a_marked_block_is_not_run() -> None:
    shared = "```python\nx = 1\n```\n\n```python\nprint(x)\n```\n\n```text\n1\n```\n"
    assert check(shared, "page.md") == 2
    assert check(f"{NO_RUN}\n```python\nraise SystemExit\n```\n", "page.md") == 0


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_inside_the_repository_leads_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text(encoding="utf-8"))
    missing = [link for link in links if "://" not in link and not (page.parent / link).exists()]
    assert not missing


# ---------------------------------------------------------------- pictures


def curves_of(picture: Path) -> dict[str, str]:
    """The path of every named curve of an SVG."""
    text = picture.read_text(encoding="utf-8")
    return dict(re.findall(r'<g id="(f[^"]*\(x\) [^"]*)">\s*<path d="([^"]*)"', text))


def test_the_pictures_are_what_their_program_makes(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="the pictures need matplotlib")
    spec = importlib.util.spec_from_file_location("make", IMAGES / "make.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    made = {path.name for path in module.make(tmp_path)}
    assert made == {path.name for path in IMAGES.glob("*.svg")} - {"life.svg"}
    for name in made:
        # Curves and not bytes: another matplotlib may set a letter elsewhere.
        assert len(curves_of(IMAGES / name)) >= 6
        assert curves_of(tmp_path / name) == curves_of(IMAGES / name)


def test_the_life_of_a_graph_is_what_its_program_draws() -> None:
    drawn = subprocess.run(
        [sys.executable, IMAGES / "life.py"], capture_output=True, text=True, check=True
    )
    assert (IMAGES / "life.svg").read_text(encoding="utf-8") == drawn.stdout
    ElementTree.fromstring(drawn.stdout)
