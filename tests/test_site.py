"""The documentation site builds without a warning, and has what there is."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import relu_ops
from relu_ops import cli, errors

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"


def build(source: Path, folder: Path) -> subprocess.CompletedProcess[str]:
    pytest.importorskip("sphinx", reason="sphinx is not installed: pip install 'relu_ops[docs]'")
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", source, folder]
    return subprocess.run(command, capture_output=True, text=True)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    done = build(DOCS, folder)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    return folder


def test_every_page_is_there(site: Path) -> None:
    for page in DOCS.rglob("*.md"):
        assert (site / page.relative_to(DOCS)).with_suffix(".html").is_file(), page


def test_the_public_names_are_documented(site: Path) -> None:
    text = (site / "api.html").read_text(encoding="utf-8")
    modules = {"errors", "graphs", "interop"}
    for name in set(relu_ops.__all__) - modules - {"__version__", "ReluOpsError"}:
        assert f'id="relu_ops.{name}"' in text, name
    for name, kind in vars(errors).items():
        if isinstance(kind, type) and issubclass(kind, errors.ReluOpsError):
            assert f'id="relu_ops.errors.{name}"' in text, name


def test_every_command_is_documented(site: Path) -> None:
    text = (site / "commands.html").read_text(encoding="utf-8")
    for verb in cli.verbs():
        assert f"usage: relu-ops {verb}" in text, verb


def test_a_link_that_leads_nowhere_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "conf.py").write_bytes((DOCS / "conf.py").read_bytes())
    (tmp_path / "index.md").write_text("# Here\n\n[there](there.md)\n")
    done = build(tmp_path, tmp_path / "site")
    assert done.returncode == 1 and "there" in done.stderr
