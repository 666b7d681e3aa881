"""The documentation site builds without a warning, and has what there is."""

from __future__ import annotations

import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

import relu_ops
from relu_ops import cli, errors

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"


def build(source: Path, folder: Path) -> subprocess.CompletedProcess[str]:
    pytest.importorskip("sphinx", reason="sphinx is not installed: pip install 'relu_ops[docs]'")
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", source, folder]
    return subprocess.run(command, capture_output=True, text=True)


def settings_to(folder: Path) -> None:
    """The site's own settings, for a site of other pages."""
    shutil.copy(DOCS / "conf.py", folder)
    shutil.copytree(DOCS / "_static", folder / "_static")


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


class Page(HTMLParser):
    """Where a page leads to, what it shows, and where in it a link can lead."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.links: set[str] = set()
        self.places: set[str] = {"", "top"}
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        for name, text in attributes:
            if name in ("href", "src") and text is not None:
                self.links.add(text)
            elif name in ("id", "name") and text:
                self.places.add(text)


def dead_links(site: Path) -> list[str]:
    """Links of a site to a file or a heading that it has not. Others' sites are not asked."""
    pages = {path: Page(path) for path in site.rglob("*.html")}
    dead = []
    for path, page in pages.items():
        for link in page.links:
            address = urlsplit(link)
            if address.scheme in ("https", "data"):
                continue
            target = (path.parent / unquote(address.path)).resolve() if address.path else path
            places = pages[target].places if target in pages else {address.fragment}
            if address.scheme or not target.is_file() or address.fragment not in places:
                dead.append(f"{path.relative_to(site)}: {link}")
    return sorted(dead)


def test_every_link_of_the_site_leads_somewhere(site: Path) -> None:
    assert len(list(site.rglob("*.html"))) > 20
    assert dead_links(site) == []


def test_a_dead_link_of_a_site_is_seen(tmp_path: Path) -> None:
    links = "./a.html a.html#here a.html#gone b.html #there http://x.org https://x.org x%20y.png"
    anchors = "".join(f'<a href="{link}">' for link in links.split())
    (tmp_path / "index.html").write_text(f'<p id="there">{anchors}</p>')
    (tmp_path / "a.html").write_text('<p id="here"></p>')
    (tmp_path / "x y.png").touch()
    dead = [f"index.html: {link}" for link in ("a.html#gone", "b.html", "http://x.org")]
    assert dead_links(tmp_path) == dead


def test_a_page_in_no_table_of_contents_is_an_error(tmp_path: Path) -> None:
    settings_to(tmp_path)
    (tmp_path / "index.md").write_text("# Here\n")
    (tmp_path / "lost.md").write_text("# Lost\n")
    done = build(tmp_path, tmp_path / "site")
    assert done.returncode == 1 and "lost.md: WARNING: document isn't included" in done.stderr


def test_a_link_that_leads_nowhere_is_an_error(tmp_path: Path) -> None:
    settings_to(tmp_path)
    (tmp_path / "index.md").write_text("# Here\n\n[there](there.md)\n")
    done = build(tmp_path, tmp_path / "site")
    assert done.returncode == 1 and "'myst' cross-reference target not found" in done.stderr
