"""Bundles: what is written is what is read, and whatever else lies there is refused unopened."""

from __future__ import annotations

import errno
import itertools
import json
import os
import pickle
import re
import shutil
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import children
import numpy as np
import onnx
import pytest

from relu_ops import compiler, graphs, targets
from relu_ops.bundle import manifest as manifests
from relu_ops.bundle import store as bundle
from relu_ops.bundle.manifest import FILE as MANIFEST
from relu_ops.bundle.store import SUMS
from relu_ops.errors import (
    ArgumentError,
    ArgumentTypeError,
    BundleError,
    DeviceError,
    ReluOpsError,
)
from relu_ops.runtime import dispatch
from relu_ops.targets import CPU_TARGETS

MODEL = "leaky_relu.onnx"
IMAGES = [f"{name}.image" for name in CPU_TARGETS]
LISTED = [MODEL, MANIFEST, *IMAGES]
FILES = [SUMS, *LISTED]
NATIVE = targets.native().name
DAMAGED = "\nhint: the file was damaged or replaced: copy or build the bundle again"

Edit = Callable[[dict[str, Any]], object]


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with an image for every x86 level; never changed."""
    path = tmp_path_factory.mktemp("bundles") / "leaky.bundle"
    compiler.build(graphs.leaky_relu(alpha=0.1), CPU_TARGETS, path)
    return path


@pytest.fixture(scope="module")
def several(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of several operators, two of which have names that no file can have."""
    path = tmp_path_factory.mktemp("bundles") / "several.bundle"
    models = {
        "act1": graphs.leaky_relu(alpha=0.5),
        "a/b": graphs.relu(),
        "\u00e4 b": graphs.relu6(),
    }
    compiler.build(models, CPU_TARGETS, path)
    return path


@pytest.fixture
def copy(original: Path, tmp_path: Path) -> Path:
    """A copy of it, to be damaged."""
    return Path(shutil.copytree(original, tmp_path / "copy.bundle"))


def mapped() -> int:
    """How many images are mapped in this process."""
    return Path("/proc/self/maps").read_text().count("/memfd:relu_ops")


@pytest.fixture
def unopened() -> Iterator[None]:
    """Fails the test where an image is mapped, whatever becomes of the error."""
    before = mapped()
    yield
    assert mapped() <= before


def refused(path: Path, message: str = "") -> BundleError:
    """Loading is refused, with a message that starts with the path."""
    with pytest.raises(BundleError, match=f"^{re.escape(f'{path}: {message}')}") as caught:
        dispatch.load(path)
    return caught.value


NO_BUNDLE = "\nhint: pass the directory of a bundle, which relu_ops.build or relu-ops build writes"


def refused_exactly(path: Path, message: str) -> None:
    assert str(refused(path, message)) == f"{path}: {message}"


def sums_of(files: Mapping[str, bytes]) -> bytes:
    lines = [f"{bundle.digest_of(files[name])}  {name}\n" for name in sorted(files)]
    return "".join(lines).encode()


def rewrite(path: Path, name: str, content: bytes) -> None:
    """Change a file of a bundle, and its digest too."""
    (path / name).write_bytes(content)
    files = {f.name: f.read_bytes() for f in path.iterdir() if f.name != SUMS}
    (path / SUMS).write_bytes(sums_of(files))


def edit_manifest(path: Path, edit: Edit) -> None:
    plain = json.loads((path / MANIFEST).read_text())
    edit(plain)
    rewrite(path, MANIFEST, json.dumps(plain).encode())


def refused_manifest(path: Path, message: str = "") -> BundleError:
    """The bundle is whole; what its manifest says is refused when it is asked for."""
    held = bundle.read(path)
    with pytest.raises(BundleError, match=f"^{re.escape(f'{path}: {message}')}") as caught:
        held.manifest  # noqa: B018
    return caught.value


# ---------------------------------------------------------------- writing and reading


def test_what_is_written_is_read(tmp_path: Path) -> None:
    files = compiler.make(graphs.add_relu(), "x86-64-v2")
    path = tmp_path / "a.bundle"
    digest = bundle.write(path, files)
    found = bundle.read(path)
    assert found.contents == files == {f.name: f.read_bytes() for f in path.iterdir()}
    assert sorted(files) == [SUMS, "add_relu.onnx", MANIFEST, "x86-64-v2.image"]
    assert found.manifest == manifests.decode(files[MANIFEST])
    assert manifests.encode(found.manifest) == files[MANIFEST]
    assert found.digest == digest == bundle.digest_of(files[SUMS])
    assert found.path == path
    assert os.listdir(tmp_path) == ["a.bundle"]
    assert stat.S_IMODE(path.stat().st_mode) == 0o755


def test_contents(original: Path) -> None:
    found = bundle.read(original)
    assert sorted(found.contents) == sorted(FILES)
    assert found.manifest.targets == CPU_TARGETS
    assert found.handle.targets == tuple(sorted(CPU_TARGETS))
    (entry,) = found.manifest.operators
    assert (entry.name, entry.model) == ("leaky_relu", MODEL)
    assert found.handle.operators == ("leaky_relu",)
    for image, name in zip(found.manifest.images, CPU_TARGETS, strict=True):
        assert (image.file, image.target) == (f"{name}.image", name)
        assert image.requires.features == targets.TARGETS[name].flags
        assert found.image(name) == (original / image.file).read_bytes()
    assert onnx.load_from_string(found.model("leaky_relu")) == graphs.leaky_relu(alpha=0.1)
    assert set(found.manifest.producer) == {
        *("relu_ops", "apache-tvm", "llvm", "ml_dtypes", "numpy", "onnx")
    }


def test_coreutils_check_a_bundle(copy: Path) -> None:
    """What the core checks, anybody can: the digest is that of the list, the list has the rest."""

    def coreutils(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = ["sha256sum", *arguments]
        return subprocess.run(command, cwd=copy, capture_output=True, text=True)

    assert coreutils(SUMS).stdout == f"{bundle.read(copy).digest}  {SUMS}\n"
    done = coreutils("--check", "--strict", SUMS)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "".join(f"{name}: OK\n" for name in sorted(LISTED))
    (copy / MODEL).write_bytes(b"")
    assert coreutils("--check", SUMS).returncode == 1


def test_a_bundle_runs(original: Path) -> None:
    for name in targets.runnable():
        op = dispatch.load(original, target=name)
        assert op.target == name
        assert op(np.float32([-10, 2])).tolist() == [-1, 2]
    assert dispatch.load(str(original)).target == NATIVE


def test_a_bundle_is_pickled_with_its_files(original: Path) -> None:
    held = bundle.read(original)
    again = pickle.loads(pickle.dumps(held))
    assert (again.path, again.digest, again.contents) == (held.path, held.digest, held.contents)
    assert repr(again) == f"<relu_ops.Bundle {original} {held.digest[:16]}>"


def test_digest_pinning(original: Path, unopened: None) -> None:
    digest = bundle.read(original).digest
    assert bundle.read(original, digest).digest == digest
    assert bundle.read(original, digest.upper()).digest == digest
    for other in ("0" * 64, digest[:-1], digest + "0", "", "sha256:" + digest):
        with pytest.raises(BundleError) as caught:
            dispatch.load(original, digest=other)
        assert str(caught.value) == (
            f"{original}: {SUMS} has the digest {digest}; it must have {other}\n"
            "hint: take the one that was meant or, if it was built anew on purpose, its new digest"
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
    with pytest.raises(ArgumentTypeError, match=f"^{re.escape(message)}\nhint: "):
        dispatch.load(path)


def test_what_is_no_digest(original: Path) -> None:
    digest: Any = bundle.read(original).digest.encode()
    with pytest.raises(ArgumentTypeError, match=r"^digest must be a text \(not bytes\)\nhint: "):
        dispatch.load(original, digest=digest)


@pytest.mark.parametrize("device", ["cuda", "cuda:0", "cuda:15", "cuda:99999999999"])
def test_without_a_driver(original: Path, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RELU_OPS_CUDA_DRIVER", "libno_driver.so.1")
    with pytest.raises(DeviceError) as caught:
        dispatch.load(original, device=device)
    assert str(caught.value) == (
        "CUDA's driver cannot be used: libno_driver.so.1: cannot open shared object file: No such "
        "file or directory\nhint: install NVIDIA's driver, or load an image for the CPU"
    )


def test_what_is_no_driver(original: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RELU_OPS_CUDA_DRIVER", "libm.so.6")
    with pytest.raises(DeviceError) as caught:
        dispatch.load(original, device="cuda")
    assert str(caught.value) == (
        "CUDA's driver is too old: libm.so.6 has no function cuInit\n"
        "hint: install a driver of CUDA 13.0 or later"
    )


@pytest.mark.parametrize(
    "device", ["tpu", "cuda:", "cuda:-1", "cuda:\u0661", "cpu:0", None], ids=repr
)
def test_another_device(original: Path, device: Any) -> None:
    with pytest.raises(ArgumentError) as caught:
        dispatch.load(original, device=device)
    assert caught.value.message == (f"device must be 'cpu', 'cuda' or 'cuda:N' (not {device!r})")


# ---------------------------------------------------------------- several operators


def test_operators_are_loaded_by_name(several: Path) -> None:
    x = np.float32([-1, 7])
    names = ("act1", "a/b", "\u00e4 b")
    found = {name: dispatch.load(several, name=name)(x).tolist() for name in names}
    assert found == {"act1": [-0.5, 7], "a/b": [0, 7], "\u00e4 b": [0, 6]}
    assert dispatch.load(several, name="a/b").name == "a/b"
    assert bundle.read(several).handle.operators == names


def test_their_models_have_files_of_their_own(several: Path) -> None:
    held = bundle.read(several)
    assert {entry.name: entry.model for entry in held.manifest.operators} == {
        "act1": "act1.onnx",
        "a/b": "operator-1.onnx",
        "\u00e4 b": "operator-2.onnx",
    }
    assert onnx.load_from_string(held.model("\u00e4 b")) == graphs.relu6()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (None, "holds 3 operators; name must be one of act1, a/b, \u00e4 b"),
        ("act2", "has no operator called act2; it has act1, a/b, \u00e4 b"),
        ("", "has no operator called ; it has act1, a/b, \u00e4 b"),
    ],
)
def test_a_missing_name_is_answered_with_those_that_there_are(
    several: Path, name: str | None, message: str
) -> None:
    held = bundle.read(several)
    for ask in (lambda: dispatch.load(several, name=name), lambda: held.operator_name(name)):
        with pytest.raises(ArgumentError) as caught:
            ask()
        assert str(caught.value) == f"{several}: {message}"


def test_they_share_what_is_the_same(several: Path, tmp_path: Path) -> None:
    twice = {"one": graphs.relu(), "other": graphs.relu()}
    both = compiler.make(twice, "x86-64-v2")["x86-64-v2.image"]
    one = compiler.make(graphs.relu(), "x86-64-v2")["x86-64-v2.image"]
    assert len(both) < len(one) + 500


@pytest.mark.parametrize(
    ("names", "files"),
    [
        (["a", "b.c-d_e", "_x", "9"], ["a.onnx", "b.c-d_e.onnx", "_x.onnx", "9.onnx"]),
        (["Relu", "relu", "RELU"], ["Relu.onnx", "operator-1.onnx", "operator-2.onnx"]),
        (["operator-1", "a b"], ["operator-0.onnx", "operator-1.onnx"]),
        (["Operator-1", "."], ["operator-0.onnx", "operator-1.onnx"]),
        (["..", "-rf", "a\nb", "x" * 65], [f"operator-{k}.onnx" for k in range(4)]),
        (
            ["x" * 64, "manifest", "\u0131"],
            ["x" * 64 + ".onnx", "manifest.onnx", "operator-2.onnx"],
        ),
    ],
)
def test_names_of_model_files(names: list[str], files: list[str]) -> None:
    found = manifests.model_files(names)
    assert found == files
    assert len({file.lower() for file in found}) == len(found)


@pytest.mark.parametrize(
    ("models", "kind", "message"),
    [
        ({}, ArgumentError, "a bundle must hold at least one operator (the mapping is empty)"),
        ({5: None}, ArgumentTypeError, "an operator's name must be a text (not int)"),
        (
            {"": None},
            ArgumentError,
            "an operator's name must be a printable text of 1 to 200 characters (not '')",
        ),
        (
            {"a\tb": None},
            ArgumentError,
            "an operator's name must be a printable text of 1 to 200 characters (not 'a\\tb')",
        ),
        (
            {"x" * 300: None},
            ArgumentError,
            "an operator's name must be a printable text of 1 to 200 characters "
            f"(not {'x' * 201!r})",
        ),
    ],
)
def test_wrong_names_are_refused_before_anything_is_compiled(
    models: Any, kind: type[ReluOpsError], message: str
) -> None:
    with pytest.raises(kind) as caught:
        compiler.make(models, "native")
    assert caught.value.message == message


def test_a_wrong_model_is_named(tmp_path: Path) -> None:
    missing = tmp_path / "missing.onnx"
    with pytest.raises(ValueError) as caught:
        compiler.build({"fine": graphs.relu(), "wrong": missing}, "native", tmp_path / "out")
    assert str(caught.value) == (
        f"wrong: {missing}: cannot be read: No such file or directory\n"
        "hint: pass the path of an .onnx file; a relative one begins in the current directory"
    )
    assert os.listdir(tmp_path) == []


# ---------------------------------------------------------------- replacing


def test_a_bundle_is_replaced(copy: Path) -> None:
    compiler.build(graphs.relu(), "x86-64-v2", copy)
    assert bundle.read(copy).handle.operators == ("relu",)
    assert os.listdir(copy.parent) == [copy.name]


def test_a_damaged_bundle_is_replaced(copy: Path) -> None:
    (copy / MODEL).write_bytes(b"damaged")
    (copy / IMAGES[0]).unlink()
    compiler.build(graphs.relu(), "x86-64-v2", copy)
    assert bundle.read(copy).handle.operators == ("relu",)


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


def _sums_of_other_work(path: Path) -> None:
    path.mkdir()
    (path / "index.html").write_text("work")
    (path / MANIFEST).write_text('{"name": "a web page", "version": 1}')
    files = {f.name: f.read_bytes() for f in path.iterdir()}
    (path / SUMS).write_bytes(sums_of(files))


def _pipe_in_place_of_the_sums(path: Path) -> None:
    path.mkdir()
    os.mkfifo(path / SUMS)


def _older_format(path: Path) -> None:
    path.mkdir()
    (path / MANIFEST).write_text('{"format": 1}')


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
    [_file, _folder, _empty_folder, _other_manifest, _sums_of_other_work, _older_format,
     _pipe_in_place_of_the_sums, _bundle_and_more, _link_to_a_bundle, _dangling_link],
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
    files = compiler.make(graphs.relu(), "x86-64-v2")
    before = bundle.read(copy).contents

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    for function in ("_write_synced", "_sync_directory", "_put_in_place"):
        with monkeypatch.context() as patch:
            patch.setattr(bundle, function, full)
            with pytest.raises(BundleError, match=r"cannot be written: No space left on device$"):
                bundle.write(copy, files)
        assert bundle.read(copy).contents == before
        assert os.listdir(copy.parent) == [copy.name]


def test_a_failed_rename_puts_the_old_bundle_back(
    copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = compiler.make(graphs.relu(), "x86-64-v2")
    before, rename, calls = bundle.read(copy).contents, Path.rename, []

    def fail_second(self: Path, to: Path) -> Path:
        calls.append(to)
        if len(calls) == 2:
            raise OSError(5, "Input/output error")
        return rename(self, to)

    monkeypatch.setattr(bundle, "_exchange", lambda one, other: False)
    monkeypatch.setattr(Path, "rename", fail_second)
    with pytest.raises(BundleError, match=r"cannot be written: Input/output error$"):
        bundle.write(copy, files)
    assert bundle.read(copy).contents == before
    assert os.listdir(copy.parent) == [copy.name]


def test_where_names_cannot_be_exchanged(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bundle, "_exchange", lambda one, other: False)
    compiler.build(graphs.relu(), "x86-64-v2", copy)
    assert bundle.read(copy).handle.operators == ("relu",)
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


def test_where_directories_cannot_be_synced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """CIFS, sshfs and vboxsf say EINVAL: the bundle is written all the same."""
    sync, refusal = os.fsync, [errno.EINVAL]

    def refuse(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(refusal[0], os.strerror(refusal[0]))
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", refuse)
    compiler.build(graphs.relu(), "x86-64-v2", tmp_path / "a.bundle")
    assert bundle.read(tmp_path / "a.bundle").handle.operators == ("relu",)
    refusal[0] = errno.EIO
    with pytest.raises(BundleError, match=r"cannot be written: Input/output error$"):
        compiler.build(graphs.relu(), "x86-64-v2", tmp_path / "b.bundle")
    assert os.listdir(tmp_path) == ["a.bundle"]


def test_files_are_on_the_disk_before_they_have_their_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who loses power finds a whole bundle under the name, or none."""
    path, sync, synced = tmp_path / "a.bundle", os.fsync, []

    def note(descriptor: int) -> None:
        lies = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        synced.append((lies.name if lies.is_file() else lies.is_dir(), path.exists()))
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", note)
    compiler.build(graphs.relu(), "x86-64-v2", path)
    named = [(name, False) for name in sorted(os.listdir(path))]
    # Every file, then the folder that lists them; and once it has its name, the folder of that.
    assert sorted(synced[:-2], key=str) == sorted(named, key=str)
    assert synced[-2:] == [(True, False), (True, True)]


_REPLACE = """
import sys
from pathlib import Path
from relu_ops.bundle import store as bundle
held = [bundle.read(path) for path in sys.argv[2:]]
for k in range(300):
    bundle.write(sys.argv[1], held[k % 2].contents)
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


# ---------------------------------------------------------------- small


def test_three_levels_are_at_most_40_kb(original: Path) -> None:
    assert sum(file.stat().st_size for file in original.iterdir()) <= 40_000


# ---------------------------------------------------------------- damaged files


def offsets(size: int, count: int) -> list[int]:
    spread = np.linspace(0, size - 1, count).astype(int).tolist()
    return sorted({*range(16), *spread, *range(size - 16, size)})


def flipped(content: bytes, at: int) -> bytes:
    return content[:at] + bytes([content[at] ^ (1 << at % 8)]) + content[at + 1 :]


def test_every_byte_of_the_sums(copy: Path, unopened: None) -> None:
    path = copy / SUMS
    content = path.read_bytes()
    for at in range(len(content)):
        path.write_bytes(flipped(content, at))
        refused(copy)


@pytest.mark.parametrize("name", LISTED)
def test_flipped_bytes(copy: Path, unopened: None, name: str) -> None:
    path = copy / name
    content = path.read_bytes()
    for at in offsets(len(content), 150):
        path.write_bytes(flipped(content, at))
        refused(copy, f"{name} has the sha256 ")


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", LISTED)
def test_every_byte_flipped(copy: Path, unopened: None, name: str) -> None:
    path = copy / name
    content = path.read_bytes()
    with path.open("r+b", buffering=0) as file:
        for at in range(len(content)):
            os.pwrite(file.fileno(), bytes([content[at] ^ (1 << at % 8)]), at)
            refused(copy, f"{name} has the sha256 ")
            os.pwrite(file.fileno(), content[at : at + 1], at)
    assert path.read_bytes() == content


@pytest.mark.parametrize("name", LISTED)
def test_the_message_of_a_changed_file(copy: Path, unopened: None, name: str) -> None:
    content = (copy / name).read_bytes()
    expected = bundle.digest_of(content)
    for changed in (flipped(content, 20), content[:-1], b"", content + b"\0", content * 2):
        (copy / name).write_bytes(changed)
        found = bundle.digest_of(changed)
        refused_exactly(copy, f"{name} has the sha256 {found}; {SUMS} says {expected}{DAMAGED}")


def test_truncated_and_extended_sums(copy: Path, unopened: None) -> None:
    """One that ends with a line is the list of another bundle: more lies there than it says."""
    content = (copy / SUMS).read_bytes()
    for size in range(len(content)):
        (copy / SUMS).write_bytes(content[:size])
        refused(copy)
    for tail in (b"\n", b"\0", b"x", content):
        (copy / SUMS).write_bytes(content + tail)
        refused(copy, f"{SUMS}: line {len(LISTED) + 1} ")


@pytest.mark.parametrize("names", list(itertools.combinations(FILES, 2)), ids="-".join)
def test_swapped(copy: Path, unopened: None, names: tuple[str, str]) -> None:
    first, second = (copy / name for name in names)
    a, b = first.read_bytes(), second.read_bytes()
    first.write_bytes(b)
    second.write_bytes(a)
    refused(copy, f"{SUMS}: line 1 " if SUMS in names else f"{min(names)} has the sha256 ")


@pytest.mark.parametrize("name", LISTED)
def test_missing(copy: Path, unopened: None, name: str) -> None:
    (copy / name).unlink()
    refused_exactly(copy, f"{name} cannot be opened: No such file or directory{DAMAGED}")


def test_a_bundle_of_the_format_before(copy: Path, unopened: None) -> None:
    """It had a manifest and no list of digests."""
    (copy / SUMS).unlink()
    refused_exactly(
        copy,
        f"has a {MANIFEST} and no {SUMS}: it was made by an older relu_ops\nhint: build it again",
    )
    (copy / MANIFEST).unlink()
    refused_exactly(copy, f"{SUMS} cannot be opened: No such file or directory{NO_BUNDLE}")


def test_no_bundle_at_all(tmp_path: Path, unopened: None) -> None:
    missing = tmp_path / "missing"
    refused_exactly(missing, f"no bundle can be read there: No such file or directory{NO_BUNDLE}")
    missing.write_text("")
    refused_exactly(missing, f"no bundle can be read there: Not a directory{NO_BUNDLE}")
    refused_exactly(tmp_path, f"{SUMS} cannot be opened: No such file or directory{NO_BUNDLE}")
    refused(tmp_path / ("x" * 256), "no bundle can be read there: File name too long")


@pytest.mark.parametrize("name", ["extra.so", ".hidden", "x86-64-v5.image", "MODEL.onnx"])
def test_an_extra_file(copy: Path, unopened: None, name: str) -> None:
    (copy / name).write_bytes(b"")
    refused_exactly(
        copy,
        f"holds {name!r}, which its {SUMS} does not list\n"
        "hint: remove it: nothing else may lie in a bundle",
    )


def test_an_extra_folder(copy: Path, unopened: None) -> None:
    (copy / "folder").mkdir()
    refused(copy, f"holds 'folder', which its {SUMS} does not list")


def _hard_links(path: Path, to: Path) -> None:
    to.mkdir()
    for file in path.iterdir():
        os.link(file, to / file.name)


def _symbolic_links(path: Path, to: Path) -> None:
    to.mkdir()
    for file in path.iterdir():
        (to / file.name).symlink_to(os.path.relpath(file, to))


def _volume(path: Path, to: Path) -> None:
    """As Kubernetes lays out a volume: what it holds can be turned in one step."""
    to.mkdir()
    shutil.copytree(path, to / "..2026_11_28")
    (to / "..data").symlink_to("..2026_11_28")
    for file in path.iterdir():
        (to / file.name).symlink_to(f"..data/{file.name}")


@pytest.mark.parametrize("lay", [_hard_links, _symbolic_links, _volume])
def test_links_of_package_stores(copy: Path, lay: Callable[[Path, Path], None]) -> None:
    """As uv and conda install, and as Nix and the hub's cache keep files: content is checked."""
    linked = copy.with_name("linked.bundle")
    digest = bundle.read(copy).digest
    lay(copy, linked)
    assert dispatch.load(linked, digest=digest)(np.float32([-10, 2])).tolist() == [-1, 2]
    target = (linked / MODEL).resolve()
    content = target.read_bytes()
    target.write_bytes(content[:-1] + b"x")
    refused(linked, f"{MODEL} has the sha256 ")


def _fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def _directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


def _device(path: Path) -> None:
    path.unlink()
    path.symlink_to("/dev/zero")


@pytest.mark.parametrize("replace", [_fifo, _directory, _device])
@pytest.mark.parametrize("name", [SUMS, MANIFEST, MODEL, IMAGES[-1]])
def test_something_else_than_a_file(
    copy: Path, unopened: None, name: str, replace: Callable[[Path], None]
) -> None:
    replace(copy / name)
    descriptors = len(os.listdir("/proc/self/fd"))
    refused_exactly(copy, f"{name} must be a regular file")
    assert len(os.listdir("/proc/self/fd")) == descriptors


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


def test_a_bundle_runs_whatever_its_manifest_says(copy: Path) -> None:
    """Everything that running needs stands in the images, which is checked there."""
    rewrite(copy, MANIFEST, b"{}")
    assert dispatch.load(copy)(np.float32([-10, 2])).tolist() == [-1, 2]
    refused_manifest(copy, f"{MANIFEST} is not a manifest: ")


def test_a_manifest_of_a_newer_format(copy: Path) -> None:
    for version in (3, 99, 2**63, 10**400):
        edit_manifest(copy, lambda m, version=version: m.update(format=version, surprise={}))
        error = refused_manifest(copy, f"{MANIFEST} has format ")
        assert error.hint == (
            "the bundle was made by a newer relu_ops: upgrade with pip install --upgrade relu_ops"
        )
        assert len(str(error)) < 1000


@pytest.mark.parametrize("version", [1, 0, -1])
def test_a_manifest_of_an_older_format(copy: Path, version: int) -> None:
    edit_manifest(copy, lambda m: m.update(format=version))
    assert str(refused_manifest(copy)) == (
        f"{copy}: {MANIFEST} has format {version}; this relu_ops reads format 2\n"
        "hint: the bundle was made by an older relu_ops: build it again"
    )


LARGEST = manifests._LARGEST

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
    "a float": b'{"format": 2.0}',
    "a bool": b'{"format": true}',
    "many digits": b'{"format": ' + b"9" * (LARGEST - 20) + b"}",
    "depth 10000": b"[" * 10_000,
    "closed depth 10000": b"[" * 10_000 + b"]" * 10_000,
    "objects of depth 10000": b'{"a":' * 10_000 + b"1" + b"}" * 10_000,
    "half a surrogate pair": b'{"operators": "\\ud800"}',
    "many brackets": b"[" + b"[]," * (LARGEST // 3 - 2) + b"[]]",
    "depth of a whole file": b"[" * LARGEST,
    "many objects": b"[" + b"{}," * (LARGEST // 3 - 2) + b"{}]",
    "objects of one key": b"[" + b'{"":0},' * (LARGEST // 7 - 2) + b"{}]",
    "many numbers": b"[" + b"9.5," * (LARGEST // 4 - 2) + b"1]",
    "many texts": b"[" + b'"\\u00e9",' * (LARGEST // 9 - 2) + b"1]",
    "a key many times": b"{" + b'"a":1,' * (LARGEST // 6 - 2) + b'"a":1}',
    "many keys": b"{" + b",".join(b'"%d":1' % k for k in range(LARGEST // 12)) + b"}",
    "one long text": b'"' + b"a" * (LARGEST - 2) + b'"',
    "a long name": b'{"operators": "' + b"\\u0007" * (LARGEST // 6 - 10) + b'"}',
    "one byte too many": b" " * LARGEST + b"x",
    "a comment": b'{"format": 2} // fine',
    "single quotes": b"{'format': 2}",
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_json(copy: Path, kind: str) -> None:
    rewrite(copy, MANIFEST, HOSTILE[kind])
    start = time.process_time()
    verb = "has" if kind == "one byte too many" else "is not"
    error = refused_manifest(copy, f"{MANIFEST} {verb} ")
    assert time.process_time() - start < 3
    assert len(str(error)) < 1000


_HOSTILE_CHILD = """
import pathlib, resource, sys, time
from relu_ops.bundle import manifest
from relu_ops.errors import BundleError
contents = {path: pathlib.Path(path).read_bytes() for path in sys.argv[1:]}
used = int(pathlib.Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 2**28, used + 2**28))
for path, content in contents.items():
    try:
        manifest.decode(content)
    except BundleError as error:
        assert len(str(error)) < 2000
    else:
        raise AssertionError(f"{path} was not refused")
try:
    bytearray(2**28)
except MemoryError:
    print("all refused")
"""


def test_hostile_manifests_in_256_mib(tmp_path: Path) -> None:
    """A child that may have no more than 256 MiB beyond what it had after its imports."""
    for number, content in enumerate(HOSTILE.values()):
        (tmp_path / str(number)).write_bytes(content)
    done = children.run(_HOSTILE_CHILD, *(tmp_path / str(k) for k in range(len(HOSTILE))))
    assert (done.returncode, done.stdout) == (0, "all refused\n"), done.stderr


def test_the_largest_manifest_that_is_written_can_be_read() -> None:
    """As many operators as an image may hold, with the longest names."""
    names = [f"{k:04}" + "\U0001f600" * 196 for k in range(4096)]
    files = manifests.model_files(names)
    images = [
        manifests.ImageEntry(f"{name}.image", name, manifests.Requirements(row.flags))
        for name, row in targets.TARGETS.items()
    ]
    made = manifests.Manifest(
        format=2,
        semantics=1,
        producer={"relu_ops": "1"},
        operators=tuple(map(manifests.OperatorEntry, names, files)),
        images=tuple(images),
    )
    assert manifests.decode(manifests.encode(made)) == made


@pytest.mark.parametrize("key", ["format", "images", "operators"])
def test_a_duplicate_key(copy: Path, key: str) -> None:
    content = (copy / MANIFEST).read_text()
    value = json.dumps(json.loads(content)[key])
    rewrite(copy, MANIFEST, content.replace("{", f'{{"{key}": {value},', 1).encode())
    message = f"{copy}: {MANIFEST} is not valid JSON: a key stands twice in one object"
    assert str(refused_manifest(copy)) == message


def test_a_duplicate_key_inside(copy: Path) -> None:
    content = (copy / MANIFEST).read_text()
    twice = content.replace('"target"', '"file": "x86-64-v3.image", "target"', 1)
    rewrite(copy, MANIFEST, twice.encode())
    refused_manifest(copy, f"{MANIFEST} is not valid JSON: a key stands twice in one object")


WRONG: dict[str, Edit] = {
    "no images": lambda m: m.pop("images"),
    "no operators": lambda m: m.pop("operators"),
    "an empty list of images": lambda m: m.update(images=[]),
    "an empty list of operators": lambda m: m.update(operators=[]),
    "an unknown field": lambda m: m.update(surprise=1),
    "an unknown field of an image": lambda m: m["images"][0].update(mode=0o777),
    "an unknown field of a requirement": lambda m: m["images"][0]["requires"].update(glibc="2.17"),
    "images are no list": lambda m: m.update(images={}),
    "an operator is no record": lambda m: m.update(operators=["relu"]),
    "a name is no text": lambda m: m["operators"][0].update(name=5),
    "a name with an escape": lambda m: m["operators"][0].update(name="relu\x1b[2J"),
    "a name that turns around": lambda m: m["operators"][0].update(name="\u202eular"),
    "a feature with a newline": lambda m: m["images"][0]["requires"].update(features=["avx\n"]),
    "a feature is no text": lambda m: m["images"][0]["requires"].update(features=[5]),
    "features are a text": lambda m: m["images"][0]["requires"].update(features="avx"),
    "no features": lambda m: m["images"][0].update(requires={}),
    "no requirements": lambda m: m["images"][0].pop("requires"),
    "a format that is a text": lambda m: m.update(format="2"),
    "a format that is null": lambda m: m.update(format=None),
    "no format": lambda m: m.pop("format"),
    "semantics 0": lambda m: m.update(semantics=0),
    "semantics of the future": lambda m: m.update(semantics=99),
    "semantics of many digits": lambda m: m.update(semantics=10**400),
    "a producer that is a list": lambda m: m.update(producer=[]),
    "a version that is a number": lambda m: m["producer"].update(numpy=2.4),
    "an operator twice": lambda m: m["operators"].append(dict(m["operators"][0], model="a.onnx")),
    "a model twice": lambda m: m["operators"].append(dict(m["operators"][0], name="other")),
    "an image twice": lambda m: m["images"].append(m["images"][0]),
    "an unknown target": lambda m: m["images"][0].update(target="x86-64-v9"),
    "a target of other digits": lambda m: m["images"][0].update(target="cuda-sm_\u0669\u0660"),
    "another target": lambda m: m["images"][0].update(target="x86-64-v3"),
    "another operator": lambda m: m["operators"][0].update(name="relu"),
    "an operator too many": lambda m: m["operators"].append({"name": "a", "model": "a.onnx"}),
    "an image too few": lambda m: m["images"].pop(),
    "an image that is not there": lambda m: m["images"].append(
        {"file": "cuda.image", "target": "cuda", "requires": {"features": []}}
    ),
    "a model that is not there": lambda m: m["operators"][0].update(model="other.onnx"),
    "a model that is the manifest": lambda m: m["operators"][0].update(model=MANIFEST),
    "a model that is an image": lambda m: m["operators"][0].update(model=IMAGES[0]),
}


@pytest.mark.parametrize("kind", WRONG)
def test_wrong_manifests(copy: Path, kind: str) -> None:
    edit_manifest(copy, WRONG[kind])
    assert len(str(refused_manifest(copy))) < 1000


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("an image too few", "the manifest and the bundle have other files: 'aarch64.image'"),
        (
            "a model that is not there",
            "the manifest and the bundle have other files: 'leaky_relu.onnx', 'other.onnx'",
        ),
        (
            "another operator",
            "the manifest and the bundle have other operators: 'leaky_relu', 'relu'",
        ),
        ("another target", f"{MANIFEST}: the file of x86-64-v3 must be x86-64-v3.image"),
        ("an operator twice", f"{MANIFEST}: an operator is listed twice"),
        ("a model twice", f"{MANIFEST}: a file is listed twice"),
    ],
)
def test_a_manifest_of_another_bundle(copy: Path, kind: str, message: str) -> None:
    edit_manifest(copy, WRONG[kind])
    assert str(refused_manifest(copy)) == f"{copy}: {message}"


NAMES = [
    *("", ".", "..", "../a.onnx", "./a.onnx", "folder/../a.onnx", "folder/a.onnx", "/etc/passwd"),
    *("//etc/passwd", "/proc/self/exe", "/dev/stdin", "~/a.onnx", "C:\\a.onnx", "..\\a.onnx"),
    *("a.onnx\0", "a.onnx\0.so", "a.onnx\n", " a.onnx", "a.onnx ", "A.ONNX", "mod\u0435l.onnx"),
    *("model\u2024onnx", "\uff4dodel.onnx", "mode\u0131.onnx", "a.onnx\u200b", "\u202exnno.a"),
    *("manifest.json", "SHA256SUMS", ".hidden.onnx", "-rf.onnx", "model", "a" * 65 + ".onnx"),
    *("a" * 4096, "a.onnx/", "a.onnx/.", "$(id).onnx", "a;b.onnx", "a b.onnx", "%2e%2e%2fx.onnx"),
    *("file:a.onnx", "con\r.onnx", "\x1b[31m.onnx"),
]


@pytest.mark.parametrize("name", NAMES, ids=lambda name: ascii(name)[:40])
@pytest.mark.parametrize("field", ["model", "file"])
def test_hostile_names(copy: Path, name: str, field: str) -> None:
    rows = "operators" if field == "model" else "images"
    edit_manifest(copy, lambda m: m[rows][0].update({field: name}))
    error = refused_manifest(copy, f"{MANIFEST}: ")
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
            manifests.decode(bytes(mutated))
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


def test_contents_are_checked_like_files(original: Path, unopened: None) -> None:
    held = bundle.read(original)
    again = bundle.from_contents("memory", held.contents, held.digest)
    assert (again.contents, again.manifest) == (held.contents, held.manifest)
    for name in LISTED:
        changed = held.contents[name][:-1] + b"\xff"
        with pytest.raises(BundleError, match=f"^memory: {re.escape(name)} has the sha256 "):
            bundle.from_contents("memory", {**held.contents, name: changed})
    for name in FILES:
        fewer = {k: v for k, v in held.contents.items() if k != name}
        with pytest.raises(BundleError, match=f"^memory: there is no {re.escape(name)}$"):
            bundle.from_contents("memory", fewer)
    with pytest.raises(BundleError, match=r"^memory: holds 'more', which its SHA256SUMS does not"):
        bundle.from_contents("memory", {**held.contents, "more": b""})
    with pytest.raises(BundleError, match=r"^memory: SHA256SUMS has the digest "):
        bundle.from_contents("memory", held.contents, "0" * 64)


@pytest.mark.parametrize("content", [b"", b"not an image", b"\x7fELF" + bytes(4092)])
def test_what_is_no_image_is_refused(content: bytes, unopened: None) -> None:
    files = compiler.make(graphs.relu(), NATIVE)
    del files[SUMS]
    files[f"{NATIVE}.image"] = content
    with pytest.raises(BundleError, match=rf"^memory: {NATIVE}\.image: "):
        bundle.from_contents("memory", {**files, SUMS: sums_of(files)})


def test_images_of_different_operators_are_refused(original: Path, unopened: None) -> None:
    files = {name: content for name, content in bundle.read(original).contents.items()}
    del files[SUMS]
    files[IMAGES[1]] = compiler.make(graphs.relu(), CPU_TARGETS[1])[IMAGES[1]]
    with pytest.raises(BundleError, match=r"^memory: x86-64-v3\.image has other operators than "):
        bundle.from_contents("memory", {**files, SUMS: sums_of(files)})


def test_an_image_under_the_name_of_another(original: Path, unopened: None) -> None:
    files = {name: content for name, content in bundle.read(original).contents.items()}
    del files[SUMS]
    files[IMAGES[0]] = files[IMAGES[1]]
    with pytest.raises(BundleError) as caught:
        bundle.from_contents("memory", {**files, SUMS: sums_of(files)})
    assert str(caught.value) == (
        "memory: x86-64-v2.image is for the target x86-64-v3, and must be called x86-64-v3.image"
    )
