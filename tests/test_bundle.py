"""Bundles: what is written is what is read, and whatever else lies there is refused unopened."""

from __future__ import annotations

import itertools
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import children
import msgspec
import numpy as np
import onnx
import pytest

from relu_ops import bundle, compiler, graphs, targets
from relu_ops.bundle import MANIFEST, MODEL
from relu_ops.errors import ArgumentError, ArgumentTypeError, BundleError
from relu_ops.runtime import dispatch, library
from relu_ops.targets import CPU_TARGETS

LIBRARIES = [f"{name}.so" for name in CPU_TARGETS]
FILES = [MODEL, *LIBRARIES]
NATIVE = targets.native().name

Edit = Callable[[dict[str, Any]], object]


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with a variant for every x86 level; never changed."""
    path = tmp_path_factory.mktemp("bundles") / "leaky.bundle"
    compiler.build(graphs.leaky_relu(alpha=0.1), CPU_TARGETS, path)
    return path


@pytest.fixture
def copy(original: Path, tmp_path: Path) -> Path:
    """A copy of it, to be damaged."""
    return Path(shutil.copytree(original, tmp_path / "copy.bundle"))


@pytest.fixture
def unopened(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Fails the test where a library is opened, whatever becomes of the error."""
    opened: list[int] = []

    def refuse(content: bytes) -> None:
        opened.append(len(content))
        raise AssertionError("a library was opened")

    monkeypatch.setattr(library, "_load_from_memory", refuse)
    monkeypatch.setattr(library, "_opened", {})
    yield
    assert not opened


def refused(path: Path, message: str = "") -> BundleError:
    """Loading is refused, with a message that starts with the path."""
    with pytest.raises(BundleError, match=f"^{re.escape(f'{path}: {message}')}") as caught:
        dispatch.load(path)
    return caught.value


def refused_exactly(path: Path, message: str) -> None:
    assert str(refused(path, message)) == f"{path}: {message}"


def edit_manifest(path: Path, edit: Edit) -> None:
    plain = json.loads((path / MANIFEST).read_text())
    edit(plain)
    (path / MANIFEST).write_text(json.dumps(plain))


# ---------------------------------------------------------------- writing and reading


def test_what_is_written_is_read(tmp_path: Path) -> None:
    manifest, contents = compiler.make(graphs.add_relu(), "x86-64-v2")
    digest = bundle.write(tmp_path / "a.bundle", manifest, contents)
    found = bundle.read(tmp_path / "a.bundle")
    assert found.manifest == manifest
    assert found.contents == contents
    assert found.encoded == (tmp_path / "a.bundle" / MANIFEST).read_bytes()
    assert found.digest == digest == bundle.digest_of(found.encoded)
    assert found.path == tmp_path / "a.bundle"
    assert found.encoded == bundle.encode(manifest)
    assert sorted(os.listdir(tmp_path / "a.bundle")) == [MANIFEST, MODEL, "x86-64-v2.so"]
    assert os.listdir(tmp_path) == ["a.bundle"]


def test_contents(original: Path) -> None:
    found = bundle.read(original)
    assert found.manifest.targets == CPU_TARGETS
    assert sorted(found.contents) == sorted(FILES)
    assert found.manifest.file(MODEL).role == "model"
    assert [found.manifest.library(name).path for name in CPU_TARGETS] == LIBRARIES
    assert onnx.load_from_string(found.contents[MODEL]) == graphs.leaky_relu(alpha=0.1)
    assert found.manifest.producer["relu_ops"]


def test_a_bundle_runs(original: Path) -> None:
    for name in CPU_TARGETS[: CPU_TARGETS.index(NATIVE) + 1]:
        op = dispatch.load(original, target=name)
        assert op.target.name == name
        assert op(np.float32([-10, 2])).tolist() == [-1, 2]
    assert dispatch.load(str(original)).target.name == NATIVE


def test_digest_pinning(original: Path, unopened: None) -> None:
    digest = bundle.read(original).digest
    assert bundle.read(original, digest).digest == digest
    assert bundle.read(original, digest.upper()).digest == digest
    for other in ("0" * 64, digest[:-1], digest + "0", "", "sha256:" + digest):
        with pytest.raises(BundleError) as caught:
            dispatch.load(original, digest=other)
        assert str(caught.value) == (
            f"{original}: {MANIFEST} has the digest {digest}; it must have {other}"
        )


def test_a_consistent_replacement_is_caught_by_the_pinned_digest(
    copy: Path, unopened: None
) -> None:
    digest = bundle.read(copy).digest
    compiler.build(graphs.leaky_relu(alpha=0.2), CPU_TARGETS, copy)
    assert bundle.read(copy).digest != digest
    with pytest.raises(BundleError, match="has the digest"):
        dispatch.load(copy, digest=digest)


@pytest.mark.parametrize("path", [None, 5, b"leaky.bundle", ["x"]], ids=repr)
def test_what_is_no_path(path: Any) -> None:
    message = f"the bundle's path must be a path (not {type(path).__name__})"
    with pytest.raises(ArgumentTypeError, match=f"^{re.escape(message)}$"):
        dispatch.load(path)


def test_what_is_no_digest(original: Path) -> None:
    digest: Any = bundle.read(original).digest.encode()
    with pytest.raises(ArgumentTypeError, match=r"^digest must be a text \(not bytes\)$"):
        dispatch.load(original, digest=digest)


def test_another_device(original: Path) -> None:
    with pytest.raises(
        ArgumentError, match=r"^device must be 'cpu', 'cuda' or 'cuda:N' \(not 'tpu'\)$"
    ):
        dispatch.load(original, device="tpu")


# ---------------------------------------------------------------- replacing


def test_a_bundle_is_replaced(copy: Path) -> None:
    compiler.build(graphs.relu(), "x86-64-v2", copy)
    assert bundle.read(copy).manifest.operator == "relu"
    assert os.listdir(copy.parent) == [copy.name]


def test_a_damaged_bundle_is_replaced(copy: Path) -> None:
    (copy / MODEL).write_bytes(b"damaged")
    (copy / LIBRARIES[0]).unlink()
    compiler.build(graphs.relu(), "x86-64-v2", copy)
    assert bundle.read(copy).manifest.operator == "relu"


def _file(path: Path) -> None:
    path.write_text("work")


def _folder(path: Path) -> None:
    path.mkdir()
    (path / "work.txt").write_text("work")


def _empty_folder(path: Path) -> None:
    path.mkdir()


def _other_manifest(path: Path) -> None:
    path.mkdir()
    (path / MANIFEST).write_text('{"name": "a web page", "version": 1}')
    (path / "index.html").write_text("work")


def _bundle_and_more(path: Path) -> None:
    compiler.build(graphs.relu(), "x86-64-v2", path)
    (path / "notes.txt").write_text("work")


def _link_to_a_bundle(path: Path) -> None:
    compiler.build(graphs.relu(), "x86-64-v2", path.with_name("real"))
    path.symlink_to("real")


def _dangling_link(path: Path) -> None:
    path.symlink_to("nowhere")


@pytest.mark.parametrize(
    "make",
    [_file, _folder, _empty_folder, _other_manifest, _bundle_and_more, _link_to_a_bundle,
     _dangling_link],
)  # fmt: skip
def test_what_is_not_a_bundle_is_not_replaced(tmp_path: Path, make: Callable[[Path], None]) -> None:
    path = tmp_path / "there"
    make(path)
    before = sorted((p, p.lstat().st_mtime_ns) for p in tmp_path.rglob("*"))
    with pytest.raises(ArgumentError) as caught:
        compiler.build(graphs.relu(), "x86-64-v2", path)
    assert str(caught.value) == (
        f"{path}: exists and is not a bundle, so it is not replaced\nhint: choose another path"
    )
    assert sorted((p, p.lstat().st_mtime_ns) for p in tmp_path.rglob("*")) == before


def test_where_it_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    path = tmp_path / "file" / "a.bundle"
    with pytest.raises(BundleError) as caught:
        compiler.build(graphs.relu(), "x86-64-v2", path)
    assert str(caught.value) == f"{path}: cannot be written: File exists"


def test_nothing_is_left_when_writing_fails(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest, contents = compiler.make(graphs.relu(), "x86-64-v2")
    before = bundle.read(copy)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    for function in ("_write_synced", "_sync_directory", "_put_in_place"):
        with monkeypatch.context() as patch:
            patch.setattr(bundle, function, full)
            with pytest.raises(BundleError, match=r"cannot be written: No space left on device$"):
                bundle.write(copy, manifest, contents)
        assert bundle.read(copy) == before
        assert os.listdir(copy.parent) == [copy.name]


def test_a_failed_rename_puts_the_old_bundle_back(
    copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest, contents = compiler.make(graphs.relu(), "x86-64-v2")
    before, rename, calls = bundle.read(copy), Path.rename, []

    def fail_second(self: Path, to: Path) -> Path:
        calls.append(to)
        if len(calls) == 2:
            raise OSError(5, "Input/output error")
        return rename(self, to)

    monkeypatch.setattr(bundle, "_exchange", lambda one, other: False)
    monkeypatch.setattr(Path, "rename", fail_second)
    with pytest.raises(BundleError, match=r"cannot be written: Input/output error$"):
        bundle.write(copy, manifest, contents)
    assert bundle.read(copy) == before
    assert os.listdir(copy.parent) == [copy.name]


def test_where_names_cannot_be_exchanged(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bundle, "_exchange", lambda one, other: False)
    compiler.build(graphs.relu(), "x86-64-v2", copy)
    assert bundle.read(copy).manifest.operator == "relu"
    assert os.listdir(copy.parent) == [copy.name]


def test_names_are_exchanged_in_one_step(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / name).mkdir()
        (tmp_path / name / name).touch()
    assert bundle._exchange(tmp_path / "a", tmp_path / "b")
    assert [os.listdir(tmp_path / name) for name in "ab"] == [["b"], ["a"]]
    assert not bundle._exchange(tmp_path / "a", tmp_path / "missing")
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError):
        bundle._exchange(tmp_path / "a", tmp_path / "file" / "b")


_REPLACE = """
import sys
from pathlib import Path
from relu_ops import bundle
held = [bundle.read(path) for path in sys.argv[2:]]
for k in range(300):
    one = held[k % 2]
    bundle.write(sys.argv[1], one.manifest, one.contents)
"""


def test_a_bundle_can_be_read_while_it_is_replaced(original: Path, copy: Path) -> None:
    """There is always one, whole: the old or the new."""
    other = copy.with_name("other.bundle")
    compiler.build(graphs.relu(), "x86-64-v2", other)
    digests = {bundle.read(original).digest, bundle.read(other).digest}
    command = [sys.executable, "-c", _REPLACE, copy, original, other]
    found, reads = set(), 0
    with subprocess.Popen(command) as child:
        while child.poll() is None:
            found.add(bundle.read(copy).digest)
            reads += 1
    assert child.returncode == 0
    assert found == digests and reads > 100


# ---------------------------------------------------------------- small, portable


def test_three_variants_are_at_most_200_kb(original: Path) -> None:
    assert sum(file.stat().st_size for file in original.iterdir()) <= 200_000


@pytest.mark.parametrize("name", LIBRARIES)
def test_libraries_need_only_libc(original: Path, name: str) -> None:
    if shutil.which("readelf") is None:
        pytest.skip("readelf is not installed (Debian: apt-get install binutils)")

    def readelf(option: str) -> str:
        command = ["readelf", "-W", option, str(original / name)]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout

    dynamic = readelf("-d")
    assert re.findall(r"\(NEEDED\).*\[(.+)\]", dynamic) in (["libc.so.6"], [])
    assert not re.search(r"RPATH|RUNPATH|TEXTREL", dynamic)
    versions = {
        tuple(map(int, v.split("."))) for v in re.findall(r"@GLIBC_([\d.]+)", readelf("-s"))
    }
    declared = bundle.read(original).manifest.library(name.removesuffix(".so")).requires["glibc"]
    assert max(versions, default=(2, 2, 5)) == tuple(map(int, declared.split(".")))
    assert tuple(map(int, declared.split("."))) <= (2, 17)
    stack = re.search(r"GNU_STACK.*", readelf("-l"))
    assert stack is None or "RWE" not in stack[0]


# ---------------------------------------------------------------- damaged files


def flipped(path: Path, at: int, bit: int) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= bit
    path.write_bytes(bytes(content))


def test_every_byte_of_the_manifest(copy: Path, unopened: None) -> None:
    """A changed manifest is refused, or it says something else that a pinned digest refuses."""
    path, digest = copy / MANIFEST, bundle.read(copy).digest
    content = path.read_bytes()
    refusals = 0
    for at in range(len(content)):
        path.write_bytes(content[:at] + bytes([content[at] ^ (1 << at % 8)]) + content[at + 1 :])
        with pytest.raises(BundleError):
            bundle.read(copy, digest)
        try:
            bundle.read(copy)
        except BundleError:
            refusals += 1
    assert refusals > 0.7 * len(content)  # the rest are names, white space, versions


def offsets(size: int, count: int) -> list[int]:
    spread = np.linspace(0, size - 1, count).astype(int).tolist()
    return sorted({*range(16), *spread, *range(size - 16, size)})


@pytest.mark.parametrize("name", FILES)
def test_flipped_bytes(copy: Path, unopened: None, name: str) -> None:
    path = copy / name
    content = path.read_bytes()
    for at in offsets(len(content), 150):
        path.write_bytes(content[:at] + bytes([content[at] ^ (1 << at % 8)]) + content[at + 1 :])
        refused(copy, f"{name} has the sha256 ")


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", FILES)
def test_every_byte_flipped(copy: Path, unopened: None, name: str) -> None:
    path = copy / name
    content = path.read_bytes()
    with path.open("r+b", buffering=0) as file:
        for at in range(len(content)):
            os.pwrite(file.fileno(), bytes([content[at] ^ (1 << at % 8)]), at)
            refused(copy, f"{name} has the sha256 ")
            os.pwrite(file.fileno(), content[at : at + 1], at)
    assert path.read_bytes() == content


def test_the_message_of_a_flipped_byte(copy: Path, unopened: None) -> None:
    expected = bundle.read(copy).manifest.file(MODEL).sha256
    flipped(copy / MODEL, 20, 1)
    found = bundle.digest_of((copy / MODEL).read_bytes())
    refused_exactly(
        copy,
        f"{MODEL} has the sha256 {found}; the manifest says {expected}\n"
        "hint: the file was damaged or replaced: copy or build the bundle again",
    )


@pytest.mark.parametrize("name", FILES)
def test_truncated(copy: Path, unopened: None, name: str) -> None:
    content = (copy / name).read_bytes()
    for size in [0, 1, *range(512, len(content), 512), len(content) - 1]:
        if size >= len(content):
            continue
        (copy / name).write_bytes(content[:size])
        refused_exactly(copy, f"{name} has {size} bytes; it must have {len(content)}")


@pytest.mark.parametrize("name", FILES)
def test_extended(copy: Path, unopened: None, name: str) -> None:
    content = (copy / name).read_bytes()
    for more in (1, 64, 4096):
        (copy / name).write_bytes(content + bytes(more))
        refused_exactly(
            copy, f"{name} has {len(content) + more} bytes; it must have at most {len(content)}"
        )


def test_truncated_and_extended_manifest(copy: Path, unopened: None) -> None:
    content = (copy / MANIFEST).read_bytes()
    for size in range(len(content) - 1):
        (copy / MANIFEST).write_bytes(content[:size])
        refused(copy, f"{MANIFEST} is not valid JSON: ")
    for tail in (b"{}", b"\0", content):
        (copy / MANIFEST).write_bytes(content + tail)
        refused(copy, f"{MANIFEST} is not valid JSON: ")


@pytest.mark.parametrize("names", list(itertools.combinations([MANIFEST, *FILES], 2)), ids="-".join)
def test_swapped(copy: Path, unopened: None, names: tuple[str, str]) -> None:
    first, second = (copy / name for name in names)
    a, b = first.read_bytes(), second.read_bytes()
    first.write_bytes(b)
    second.write_bytes(a)
    refused(copy, f"{MANIFEST} is not valid JSON: " if MANIFEST in names else f"{names[0]} has ")


@pytest.mark.parametrize("name", [MANIFEST, *FILES])
def test_missing(copy: Path, unopened: None, name: str) -> None:
    (copy / name).unlink()
    refused_exactly(copy, f"{name} cannot be opened: No such file or directory")


def test_no_bundle_at_all(tmp_path: Path, unopened: None) -> None:
    missing = tmp_path / "missing"
    refused_exactly(missing, "no bundle can be read there: No such file or directory")
    missing.write_text("")
    refused_exactly(missing, "no bundle can be read there: Not a directory")
    refused_exactly(tmp_path, f"{MANIFEST} cannot be opened: No such file or directory")
    with pytest.raises(ValueError, match="embedded null") as python:  # other words from 3.13 on
        os.open("nul\0nul", os.O_RDONLY)
    refused_exactly(tmp_path / "nul\0nul", f"no bundle can be read there: {python.value}")
    refused(tmp_path / ("x" * 4096), "no bundle can be read there: File name too long")


@pytest.mark.parametrize("name", ["extra.so", ".hidden", "x86-64-v5.so", "MODEL.onnx", "a\nb"])
def test_an_extra_file(copy: Path, unopened: None, name: str) -> None:
    (copy / name).write_bytes(b"")
    refused_exactly(copy, f"holds {name!r}, which its manifest does not list")


def test_an_extra_folder(copy: Path, unopened: None) -> None:
    (copy / "folder").mkdir()
    refused_exactly(copy, "holds 'folder', which its manifest does not list")


def _symlink(path: Path) -> None:
    path.rename(path.parents[1] / "elsewhere")
    path.symlink_to(path.parents[1] / "elsewhere")


def _hard_link(path: Path) -> None:
    os.link(path, path.parents[1] / "elsewhere")


def _fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def _directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


def _device(path: Path) -> None:
    path.unlink()
    path.symlink_to("/dev/zero")


@pytest.mark.parametrize("replace", [_symlink, _hard_link, _fifo, _directory, _device])
@pytest.mark.parametrize("name", [MANIFEST, MODEL, LIBRARIES[-1]])
def test_something_else_than_a_file(
    copy: Path, unopened: None, name: str, replace: Callable[[Path], None]
) -> None:
    replace(copy / name)
    descriptors = len(os.listdir("/proc/self/fd"))
    if replace in (_symlink, _device):
        message = f"{name} cannot be opened: Too many levels of symbolic links"
    else:
        message = f"{name} must be a regular file with one name, no link or device"
    refused_exactly(copy, message)
    assert len(os.listdir("/proc/self/fd")) == descriptors


@pytest.mark.parametrize("name", [MODEL, LIBRARIES[-1]])
def test_a_folder_that_is_a_link(copy: Path, unopened: None, name: str) -> None:
    """A file behind a link to a folder cannot even be named, nor may the link lie there."""
    elsewhere = copy.with_name("elsewhere")
    elsewhere.mkdir()
    (copy / name).rename(elsewhere / name)
    (copy / "folder").symlink_to(elsewhere)
    refused_exactly(copy, f"{name} cannot be opened: No such file or directory")

    def edit(manifest: dict[str, Any]) -> None:
        next(f for f in manifest["files"] if f["path"] == name).update(path=f"folder/{name}")

    edit_manifest(copy, edit)
    wrong = f"'folder/{name}' is not a file name of a bundle"
    refused_exactly(copy, f"{MANIFEST}: {f'{MODEL} is not listed' if name == MODEL else wrong}")


@pytest.mark.parametrize("link", ["bundle", "folder"])
def test_the_path_that_is_given_may_lead_through_links(original: Path, link: str) -> None:
    """It is the caller's own: `current.bundle` may point at the release that is in force."""
    path = original if link == "bundle" else original.parent
    alias = path.with_name(f"alias of a {link}")
    alias.symlink_to(path)
    try:
        held = bundle.read(alias if link == "bundle" else alias / original.name)
        assert held.digest == bundle.read(original).digest
    finally:
        alias.unlink()


def test_a_socket(copy: Path, unopened: None) -> None:
    (copy / MODEL).unlink()
    with socket.socket(socket.AF_UNIX) as listener:
        # The path of a socket is short: bind in the folder itself.
        before = os.getcwd()
        os.chdir(copy)
        try:
            listener.bind(MODEL)
        finally:
            os.chdir(before)
        refused_exactly(copy, f"{MODEL} cannot be opened: No such device or address")


# ---------------------------------------------------------------- hostile manifests


def test_a_manifest_of_a_newer_format(copy: Path, unopened: None) -> None:
    for version in (2, 99, 2**63, 10**400):
        edit_manifest(copy, lambda m, version=version: m.update(format=version, surprise={}))
        error = refused(copy, f"{MANIFEST} has format ")
        assert error.hint == (
            "the bundle was made by a newer relu_ops: upgrade with pip install --upgrade relu_ops"
        )
        assert len(str(error)) < 1000


def _older(plain: dict[str, Any]) -> dict[str, Any]:
    """What a format 2 might be: the operator's name is called `title` in format 1."""
    title = plain.pop("title")
    return {**plain, "operator": title.upper()}


def test_a_manifest_of_an_older_format(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bundle, "FORMAT_VERSION", 2)
    monkeypatch.setattr(bundle, "_UPGRADES", {1: _older})
    edit_manifest(copy, lambda m: m.update(title=m.pop("operator")))
    held = bundle.read(copy)
    assert (held.manifest.format, held.manifest.operator) == (2, "LEAKY_RELU")
    assert held.encoded == (copy / MANIFEST).read_bytes()
    assert held.digest == bundle.digest_of(held.encoded)
    op = dispatch.load(copy, digest=held.digest)
    assert op(np.float32([-10, 2])).tolist() == [-1, 2]
    assert bundle.from_contents("memory", held.encoded, held.contents).manifest == held.manifest


@pytest.mark.parametrize("title", [..., 5, None, []], ids=repr)
def test_a_wrong_manifest_of_an_older_format(
    copy: Path, unopened: None, monkeypatch: pytest.MonkeyPatch, title: object
) -> None:
    monkeypatch.setattr(bundle, "FORMAT_VERSION", 2)
    monkeypatch.setattr(bundle, "_UPGRADES", {1: _older})
    if title is not ...:
        edit_manifest(copy, lambda m: m.update(title=title))
    refused(copy, f"{MANIFEST} is not a manifest of format 1: ")


def test_every_format_can_be_read() -> None:
    assert sorted(bundle._UPGRADES) == list(range(1, bundle.FORMAT_VERSION))


@pytest.mark.parametrize("version", [0, -1])
def test_a_manifest_of_no_format(copy: Path, unopened: None, version: int) -> None:
    edit_manifest(copy, lambda m: m.update(format=version))
    refused_exactly(copy, f"{MANIFEST}: format must be 1")


HOSTILE: dict[str, bytes] = {
    "empty": b"",
    "not UTF-8": b"\xff\xfe",
    "a byte order mark": b"\xef\xbb\xbf{}",
    "null": b"null",
    "a list": b"[]",
    "a number": b"1",
    "a text": b'"manifest"',
    "an empty object": b"{}",
    "NaN": b'{"format": NaN}',
    "Infinity": b'{"format": -Infinity}',
    "a number beyond float64": b'{"format": 1e999}',
    "a float": b'{"format": 1.0}',
    "a bool": b'{"format": true}',
    "many digits": b'{"format": ' + b"9" * 900_000 + b"}",
    "depth 10000": b"[" * 10_000,
    "closed depth 10000": b"[" * 10_000 + b"]" * 10_000,
    "objects of depth 10000": b'{"a":' * 10_000 + b"1" + b"}" * 10_000,
    "half a surrogate pair": b'{"operator": "\\ud800"}',
    "a million brackets": b"[" + b"[]," * 340_000 + b"[]]",
    "depth of a whole file": b"[" * 2**20,
    "a million objects": b"[" + b"{}," * 340_000 + b"{}]",
    "objects of one key": b"[" + b'{"":0},' * 140_000 + b"{}]",
    "a million numbers": b"[" + b"9.5," * 260_000 + b"1]",
    "a million texts": b"[" + b'"\\u00e9",' * 110_000 + b"1]",
    "a key a million times": b"{" + b'"a":1,' * 170_000 + b'"a":1}',
    "many keys": b"{" + b",".join(b'"%d":1' % k for k in range(90_000)) + b"}",
    "one long text": b'"' + b"a" * 1_000_000 + b'"',
    "a long name": b'{"operator": "' + b"\\u0007" * 170_000 + b'"}',
    "a comment": b'{"format": 1} // fine',
    "single quotes": b"{'format': 1}",
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_json(copy: Path, unopened: None, kind: str) -> None:
    (copy / MANIFEST).write_bytes(HOSTILE[kind])
    start = time.perf_counter()
    error = refused(copy, f"{MANIFEST} is not ")
    assert time.perf_counter() - start < 1
    assert len(str(error)) < 1000


_HOSTILE_CHILD = """
import pathlib, resource, sys, time
from relu_ops import bundle
from relu_ops.errors import BundleError
paths = [pathlib.Path(path) for path in sys.argv[1:]]
used = int(pathlib.Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 2**26, used + 2**26))
for path in paths:
    start = time.process_time()
    try:
        bundle.read(path)
    except BundleError as error:
        assert len(str(error)) < 2000
    else:
        raise AssertionError(f"{path} was not refused")
    assert time.process_time() - start < 1, path
try:
    bytearray(2**26)
except MemoryError:
    print("all refused")
"""


def test_hostile_manifests_in_64_mib_and_a_second_each(tmp_path: Path) -> None:
    """A child that may have no more than 64 MiB beyond what it had after its imports."""
    contents = {**HOSTILE, "1 GB of digits": b'{"format": 9'}
    for name, content in contents.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / MANIFEST).write_bytes(content)
    with (tmp_path / "1 GB of digits" / MANIFEST).open("r+b") as file:
        file.truncate(10**9)
    done = children.run(_HOSTILE_CHILD, *(tmp_path / name for name in contents))
    assert (done.returncode, done.stdout) == (0, "all refused\n"), done.stderr


def test_a_huge_manifest_is_not_even_read(copy: Path, unopened: None) -> None:
    with (copy / MANIFEST).open("r+b") as file:
        file.truncate(2**30)
    refused_exactly(copy, f"{MANIFEST} has {2**30} bytes; it must have at most {2**20}")


@pytest.mark.parametrize("key", ["format", "files", "operator"])
def test_a_duplicate_key(copy: Path, unopened: None, key: str) -> None:
    content = (copy / MANIFEST).read_text()
    value = json.dumps(json.loads(content)[key])
    (copy / MANIFEST).write_text(content.replace("{", f'{{"{key}": {value},', 1))
    refused_exactly(copy, f"{MANIFEST} is not valid JSON: a key stands twice in one object")


def test_a_duplicate_key_inside(copy: Path, unopened: None) -> None:
    content = (copy / MANIFEST).read_text()
    (copy / MANIFEST).write_text(content.replace('"role"', '"path": "other.so", "role"', 1))
    refused_exactly(copy, f"{MANIFEST} is not valid JSON: a key stands twice in one object")


WRONG: dict[str, Edit] = {
    "no files": lambda m: m.pop("files"),
    "an unknown field": lambda m: m.update(surprise=1),
    "an unknown field of a file": lambda m: m["files"][0].update(mode=0o777),
    "files are no list": lambda m: m.update(files={}),
    "the operator is no text": lambda m: m.update(operator=5),
    "an extent is a float": lambda m: m["inputs"][0].update(shape=[1.5]),
    "an extent is a bool": lambda m: m["inputs"][0].update(shape=[True]),
    "a name with an escape": lambda m: m.update(operator="relu\x1b[2J"),
    "a name with a newline": lambda m: m["inputs"][0].update(name="x\ny"),
    "an extent with a bell": lambda m: m["inputs"][0].update(shape=["\a"]),
    "a name that turns around": lambda m: m["outputs"][0].update(name="\u202ey"),
    "a format that is a text": lambda m: m.update(format="1"),
    "a format that is null": lambda m: m.update(format=None),
    "no format": lambda m: m.pop("format"),
    "an unknown dtype": lambda m: m["inputs"][0].update(dtype="complex64"),
    "a size is a text": lambda m: m["files"][0].update(size="261"),
    "a size is negative": lambda m: m["files"][0].update(size=-1),
    "a size is 2**63": lambda m: m["files"][0].update(size=2**63),
    "a size is 2**64": lambda m: m["files"][0].update(size=2**64),
    "a size has 400 digits": lambda m: m["files"][0].update(size=10**400),
    "a size is a float": lambda m: m["files"][0].update(size=261.0),
    "no outputs": lambda m: m.update(outputs=[], output_terms=[]),
    "terms of another output": lambda m: m["output_terms"].append([]),
    "a term of no input": lambda m: m["output_terms"][0][0].update(input=1),
    "a term of a negative input": lambda m: m["output_terms"][0][0].update(input=-1),
    "a term with a negative extent": lambda m: m["output_terms"][0][0].update(shape=[-1]),
    "a term with many trailing": lambda m: m["output_terms"][0][0].update(trailing=2**40),
    "semantics 0": lambda m: m.update(semantics=0),
    "semantics of the future": lambda m: m.update(semantics=99),
    "no model": lambda m: m["files"].pop(0),
    "a file twice": lambda m: m["files"].append(m["files"][0]),
    "a target twice": lambda m: m["files"][1].update(target=m["files"][2]["target"]),
    "an unknown target": lambda m: m["files"][1].update(target="x86-64-v9"),
    "a target of other digits": lambda m: m["files"][1].update(target="cuda-sm_\u0669\u0660"),
    "an unknown role": lambda m: m["files"][1].update(role="script"),
    "a model with a target": lambda m: m["files"][0].update(target="x86-64-v2"),
    "a library without a target": lambda m: m["files"][1].update(target=None),
    "a short sha256": lambda m: m["files"][1].update(sha256="00"),
    "an upper-case sha256": lambda m: m["files"][1].update(sha256=m["files"][1]["sha256"].upper()),
    "another sha256": lambda m: m["files"][1].update(sha256="0" * 64),
}


@pytest.mark.parametrize("kind", WRONG)
def test_wrong_manifests(copy: Path, unopened: None, kind: str) -> None:
    edit_manifest(copy, WRONG[kind])
    assert len(str(refused(copy))) < 1000


NAMES = [
    "",
    ".",
    "..",
    "../model.onnx",
    "./model.onnx",
    "folder/../model.onnx",
    "folder/model.onnx",
    "/etc/passwd",
    "//etc/passwd",
    "/proc/self/exe",
    "/dev/stdin",
    "~/model.onnx",
    "C:\\model.onnx",
    "..\\model.onnx",
    "model.onnx\0",
    "model.onnx\0.so",
    "model.onnx\n",
    " model.onnx",
    "model.onnx ",
    "MODEL.ONNX",
    "Model.onnx",
    "mod\u0435l.onnx",
    "model\u2024onnx",
    "\uff4dodel.onnx",
    "mode\u0131.onnx",
    "model.onnx\u200b",
    "\u202exnno.ledom",
    "manifest.json",
    ".hidden",
    "-rf",
    "_model",
    "a" * 65,
    "a" * 4096,
    "x86-64-v2.so/",
    "x86-64-v2.so/.",
    "$(id).so",
    "a;b.so",
    "a b.so",
    "%2e%2e%2fx",
    "file:model.onnx",
    "con\r.so",
    "\x1b[31m.so",
]


@pytest.mark.parametrize("name", NAMES, ids=lambda name: ascii(name)[:40])
@pytest.mark.parametrize("entry", [0, 1])
def test_hostile_names(copy: Path, unopened: None, name: str, entry: int) -> None:
    edit_manifest(copy, lambda m: m["files"][entry].update(path=name))
    error = refused(copy, f"{MANIFEST}: ")
    assert len(str(error)) < 1000
    assert error.message.isprintable()


def mutate_manifest(content: bytes, seed: int, count: int) -> dict[str, int]:
    """Each is refused with a BundleError, or is a manifest all the same."""
    random = np.random.default_rng(seed)
    pieces = [b"null", b"-1", b"{", b"}", b"[", b'"', b"1e9", b"\\u0000", b"true", b",", b"\xff"]
    pieces += [b"9" * 30, b"NaN", b"\\ud800", b"", b"1.5", b"../x", b'"a":', b"[" * 40, b"\0"]
    outcomes = {"read": 0, "refused": 0}
    for _ in range(count):
        mutated = bytearray(content)
        for _ in range(int(random.integers(1, 4))):
            at, length = random.integers(0, len(mutated)), random.integers(0, 20)
            if random.integers(0, 3):
                mutated[at : at + length] = pieces[random.integers(0, len(pieces))]
            else:
                start = random.integers(0, len(mutated))
                mutated[at : at + length] = mutated[start : start + random.integers(0, 60)]
        try:
            bundle.decode(bytes(mutated))
            outcomes["read"] += 1
        except BundleError as error:
            assert len(str(error)) < 1000
            outcomes["refused"] += 1
    return outcomes


def test_random_mutations_of_the_manifest(original: Path) -> None:
    outcomes = mutate_manifest((original / MANIFEST).read_bytes(), 11, 2000)
    assert min(outcomes.values()) > 20


@pytest.mark.exhaustive
def test_100_000_random_mutations_of_the_manifest(original: Path) -> None:
    print(mutate_manifest((original / MANIFEST).read_bytes(), 12, 100_000))


# ---------------------------------------------------------------- contents in memory


def test_contents_are_checked_like_files(original: Path) -> None:
    held = bundle.read(original)
    again = bundle.from_contents(str(original), held.encoded, held.contents)
    assert again == held
    for name in FILES:
        changed = held.contents[name][:-1] + b"\xff"
        with pytest.raises(BundleError, match=f"^{re.escape(name)} has the sha256 "):
            bundle.from_contents("memory", held.encoded, {**held.contents, name: changed})
        fewer = {k: v for k, v in held.contents.items() if k != name}
        with pytest.raises(BundleError, match=r"^memory: the files are not those that"):
            bundle.from_contents("memory", held.encoded, fewer)


@pytest.mark.parametrize("content", [b"", b"not a library"])
def test_what_is_no_library_is_refused(content: bytes) -> None:
    manifest, contents = compiler.make(graphs.relu(), NATIVE)
    name = f"{NATIVE}.so"
    entry = bundle.File(name, "library", NATIVE, bundle.digest_of(content), len(content), {})
    changed = msgspec.structs.replace(manifest, files=(manifest.file(MODEL), entry))
    held = bundle.from_contents(
        "memory", bundle.encode(changed), {MODEL: contents[MODEL], name: content}
    )
    with pytest.raises(BundleError, match=rf"^memory: {name}: the (size|magic) .* \(allowed: "):
        dispatch.operator_of(held)
