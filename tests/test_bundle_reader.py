"""Bundles as the native core reads them: what SHA256SUMS lists, in whatever way files are laid."""

from __future__ import annotations

import ctypes
import hashlib
import itertools
import os
import platform
import re
import shutil
import threading
from collections.abc import Callable, Mapping
from pathlib import Path

import images
import pytest

from relu_ops.errors import ArgumentError, BundleError, TargetError
from relu_ops.native import _python as native
from relu_ops.targets import TARGETS

DAMAGED = "the file was damaged or replaced: copy or build the bundle again"
REWRITE = "it is not as relu_ops writes it: build the bundle again"
SUMS = "SHA256SUMS"

Files = Mapping[str, bytes]


def image(
    target: str, names: tuple[str, ...] = ("act1", "act2"), machine: int = 1, flags: bool = True
) -> bytes:
    """An image as the compiler makes it for a target, of operators that compute nothing."""
    if machine == images.CUDA:
        return bytes(images.cuda(names, target).content)
    requires = TARGETS[target].flags if flags and target in TARGETS else ()
    operators = [images.operator(name) for name in names]
    made = images.written(operators, kernels=3, target=target, requires=requires, machine=machine)
    return bytes(made.content)


FILES: Files = {
    "act1.onnx": b"one model",
    "act2.onnx": b"another model",
    "cuda.image": image("cuda", machine=3),
    "manifest.json": b"{}",
    "x86-64-v2.image": image("x86-64-v2"),
    "x86-64-v3.image": image("x86-64-v3"),
    "x86-64-v4.image": image("x86-64-v4"),
}


def sums(files: Files) -> bytes:
    """As `sha256sum` prints it."""
    lines = (f"{hashlib.sha256(content).hexdigest()}  {name}\n" for name, content in files.items())
    return "".join(lines).encode()


def whole(files: Files) -> dict[str, bytes]:
    return {SUMS: sums(files), **files}


def laid(path: Path, files: Files) -> Path:
    path.mkdir(parents=True)
    for name, content in files.items():
        (path / name).write_bytes(content)
    return path


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return laid(tmp_path / "a.bundle", whole(FILES))


def refused(path: Path, message: str, hint: str | None = None, digest: str | None = None) -> None:
    with pytest.raises(BundleError) as caught:
        native.read_bundle(os.fspath(path), digest)
    assert (caught.value.message, caught.value.hint) == (f"{path}: {message}", hint)


def files_refused(files: Files, message: str, hint: str | None = None) -> None:
    with pytest.raises(BundleError) as caught:
        native.open_files("shown", files)
    assert (caught.value.message, caught.value.hint) == (f"shown: {message}", hint)


# ---------------------------------------------------------------- what is right


def test_what_lies_there_is_read(path: Path) -> None:
    for found in (
        native.read_bundle(os.fspath(path)),
        native.read_bundle(os.fsencode(path)),
        native.open_files("shown", whole(FILES)),
        native.open_files("shown", dict(reversed(whole(FILES).items()))),
    ):
        assert found.files == whole(FILES)
        assert found.digest == hashlib.sha256(sums(FILES)).hexdigest()
        assert found.targets == ("cuda", "x86-64-v2", "x86-64-v3", "x86-64-v4")
        assert found.operators == ("act1", "act2")


def test_sha256sum_agrees(path: Path) -> None:
    assert os.system(f"cd '{path}' && sha256sum --quiet --strict --check {SUMS}") == 0


def test_digests_are_those_of_python() -> None:
    """Around one block and two, with what is left of one, and over many."""
    for size in [*range(131), 1000, 4095, 4096, 1_000_003]:
        files = {"manifest.json": os.urandom(size), "a.image": image("a")}
        files = dict(sorted(files.items()))
        found = native.open_files("shown", whole(files))
        assert found.digest == hashlib.sha256(sums(files)).hexdigest(), size


def test_the_digest_can_be_pinned(path: Path) -> None:
    digest = hashlib.sha256(sums(FILES)).hexdigest()
    assert native.read_bundle(os.fspath(path), digest).digest == digest
    assert native.read_bundle(os.fspath(path), digest.upper()).digest == digest
    for other in ("0" * 64, digest[:-1], digest + "0", "", f"sha256:{digest}"):
        message = f"{SUMS} has the digest {digest}; it must have {other}"
        hint = "take the one that was meant or, if it was built anew on purpose, its new digest"
        refused(path, message, hint, digest=other)


def test_an_empty_file_is_a_file(tmp_path: Path) -> None:
    files = {**FILES, "manifest.json": b""}
    assert native.read_bundle(os.fspath(laid(tmp_path / "b", whole(files)))).files == whole(files)
    assert native.open_files("shown", whole(files)).files == whole(files)


def _hard_links(path: Path, store: Path) -> None:
    for name in whole(FILES):
        os.link(path / name, store / name)


def _symbolic_links(path: Path, store: Path) -> None:
    for name in whole(FILES):
        (path / name).rename(store / name)
        (path / name).symlink_to(store / name)


def _config_map(path: Path, store: Path) -> None:
    """As Kubernetes mounts a volume: links through one link to a directory beside them."""
    shutil.copytree(path, path / "..2026_11_28")
    (path / "..data").symlink_to("..2026_11_28")
    for name in whole(FILES):
        (path / name).unlink()
        (path / name).symlink_to(f"..data/{name}")


def _link_to_the_directory(path: Path, store: Path) -> None:
    shutil.move(path, store / "moved")
    path.symlink_to(store / "moved")


LAYOUTS = [_hard_links, _symbolic_links, _config_map, _link_to_the_directory]


@pytest.mark.parametrize("lay", LAYOUTS)
def test_as_package_stores_lay_files(
    path: Path, tmp_path: Path, lay: Callable[[Path, Path], None]
) -> None:
    (tmp_path / "store").mkdir()
    lay(path, tmp_path / "store")
    assert native.read_bundle(os.fspath(path)).files == whole(FILES)


# ---------------------------------------------------------------- what is not right


@pytest.mark.parametrize("name", FILES)
def test_a_damaged_file(path: Path, name: str) -> None:
    content = FILES[name]
    damaged = bytes([content[0] ^ 1]) + content[1:]
    for wrong in (damaged, content + b"\0", content[:-1], b""):
        (path / name).write_bytes(wrong)
        message = (
            f"{name} has the sha256 {hashlib.sha256(wrong).hexdigest()}; "
            f"{SUMS} says {hashlib.sha256(content).hexdigest()}"
        )
        refused(path, message, DAMAGED)
        files_refused({**whole(FILES), name: wrong}, message, DAMAGED)


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file(path: Path, name: str) -> None:
    (path / name).unlink()
    refused(path, f"{name} cannot be opened: No such file or directory", DAMAGED)
    files = whole(FILES)
    del files[name]
    files_refused(files, f"there is no {name}")


def _fifo(path: Path) -> None:
    os.mkfifo(path)


def _directory(path: Path) -> None:
    path.mkdir()


def _device(path: Path) -> None:
    path.symlink_to("/dev/zero")


@pytest.mark.parametrize("name", ["manifest.json", "x86-64-v2.image", SUMS])
@pytest.mark.parametrize("replace", [_fifo, _directory, _device])
def test_what_is_no_regular_file(path: Path, name: str, replace: Callable[[Path], None]) -> None:
    (path / name).unlink()
    replace(path / name)
    refused(path, f"{name} must be a regular file")


def test_a_link_to_nowhere_and_one_to_itself(path: Path) -> None:
    (path / "act1.onnx").unlink()
    (path / "act1.onnx").symlink_to("nowhere")
    refused(path, "act1.onnx cannot be opened: No such file or directory", DAMAGED)
    (path / "act1.onnx").unlink()
    (path / "act1.onnx").symlink_to("act1.onnx")
    refused(path, "act1.onnx cannot be opened: Too many levels of symbolic links")


def test_files_that_are_too_large(path: Path) -> None:
    os.truncate(path / "act1.onnx", 2**31 + 1)
    refused(path, "act1.onnx has 2147483649 bytes; it must have at most 2147483648")
    os.truncate(path / SUMS, 2**20 + 1)
    refused(path, f"{SUMS} has 1048577 bytes; it must have at most 1048576")


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("notes.txt", "'notes.txt'"),
        (".notes.txt.swp", "'.notes.txt.swp'"),
        ("a b'\\", r"'a b\x27\x5c'"),
        ("\x1b[2J\u00e9", r"'\x1b[2J\xc3\xa9'"),
    ],
)
def test_what_is_not_listed_is_refused(path: Path, name: str, shown: str) -> None:
    message = f"holds {shown}, which its {SUMS} does not list"
    hint = "remove it: nothing else may lie in a bundle"
    (path / name).write_text("work")
    for number in range(20):
        (path / f"zzz{number}").mkdir()
    refused(path, message, hint)
    files_refused({**whole(FILES), name: b"work"}, message, hint)


LISTED = sums(FILES)
LINES = LISTED.splitlines(keepends=True)
MALFORMED = "must be a sha256 in lower case, two spaces, the name of a file, and an end"
ORDER = "names a file that must stand before those above it"


@pytest.mark.parametrize(
    ("listed", "line", "what"),
    [
        (LISTED[:-1], 7, MALFORMED),
        (LISTED.replace(b"\n", b"\r\n"), 1, MALFORMED),
        (LISTED + b"\n", 8, MALFORMED),
        (b"\xef\xbb\xbf" + LISTED, 1, MALFORMED),
        (LISTED.replace(b"  act2", b" *act2"), 2, MALFORMED),
        (LISTED.replace(b"  act2", b" act2"), 2, MALFORMED),
        (LISTED.replace(b"  act2", b"\t act2"), 2, MALFORMED),
        (LISTED.replace(b"  act2", b"  ./act2"), 2, MALFORMED),
        (LISTED.replace(b"  act2", b"  ../act2"), 2, MALFORMED),
        (LISTED.replace(b"  act2", b"  /act2"), 2, MALFORMED),
        (LISTED.replace(b"  act2", b"  .act2"), 2, MALFORMED),
        (LISTED.replace(b"  act2", b"  -act2"), 2, MALFORMED),
        (LISTED.replace(b"  act2", b"  ac/t2"), 2, MALFORMED),
        (LISTED.replace(b"  act2", b"  act\0"), 2, MALFORMED),
        (LISTED.replace(b"  act2", "  act\u00e92".encode()), 2, MALFORMED),
        (LISTED.replace(b"  act2.onnx", b"  " + b"a" * 129), 2, MALFORMED),
        (LISTED.replace(b"  act2.onnx", b"  "), 2, MALFORMED),
        (LINES[0].upper() + b"".join(LINES[1:]), 1, MALFORMED),
        (LINES[0][1:] + b"".join(LINES[1:]), 1, MALFORMED),
        (LINES[0].replace(b"  act1.onnx", b"  SHA256SUMS") + b"".join(LINES[1:]), 1, MALFORMED),
        (LINES[0] + LISTED, 2, ORDER),
        (b"".join([*LINES[:2], LINES[3], LINES[2], *LINES[4:]]), 4, ORDER),
    ],
)
def test_lists_that_are_not_as_they_must_be(
    tmp_path: Path, listed: bytes, line: int, what: str
) -> None:
    files = {**FILES, SUMS: listed}
    refused(laid(tmp_path / "b", files), f"{SUMS}: line {line} {what}", REWRITE)
    files_refused(files, f"{SUMS}: line {line} {what}", REWRITE)


def test_a_name_of_128_bytes(tmp_path: Path) -> None:
    files = {"_" + "A-z.9" * 25 + "_b": b"most", **FILES}
    assert len(next(iter(files))) == 128
    assert native.open_files("shown", whole(files)).files == whole(files)


def test_the_manifest_must_be_listed() -> None:
    files = {name: content for name, content in FILES.items() if name != "manifest.json"}
    files_refused(whole(files), f"{SUMS} does not list manifest.json")
    files_refused({SUMS: b""}, f"{SUMS} does not list manifest.json")


def test_two_files_of_one_name() -> None:
    """Python's dictionaries have no such thing; programs in C may."""
    core = ctypes.CDLL(str(Path(native.__file__).with_name("librelu_ops.so")))
    core.relu_ops_message.restype = ctypes.c_char_p
    files = [*whole(FILES).items(), ("act1.onnx", b"again")]
    names = (ctypes.c_char_p * len(files))(*(name.encode() for name, _ in files))
    contents = (ctypes.c_char_p * len(files))(*(content for _, content in files))
    sizes = (ctypes.c_size_t * len(files))(*(len(content) for _, content in files))
    bundle = ctypes.c_void_p()
    status = core.relu_ops_open_files(
        b"shown", ctypes.c_size_t(len(files)), names, contents, sizes, None, ctypes.byref(bundle)
    )
    assert (status, core.relu_ops_message()) == (3, b"shown: 9 files of 8 names")


# ---------------------------------------------------------------- where there is none


def test_where_there_is_no_bundle(tmp_path: Path) -> None:
    hint = "pass the directory of a bundle, which relu_ops.build or relu-ops build writes"
    refused(tmp_path / "none", "no bundle can be read there: No such file or directory", hint)
    (tmp_path / "file").write_text("text")
    refused(tmp_path / "file", "no bundle can be read there: Not a directory", hint)
    refused(tmp_path, f"{SUMS} cannot be opened: No such file or directory", hint)


def test_a_model_is_no_bundle(tmp_path: Path) -> None:
    (tmp_path / "relu.onnx").write_text("text")
    hint = "build a bundle of a model first: relu_ops.build, or relu-ops build"
    refused(tmp_path / "relu.onnx", "no bundle can be read there: Not a directory", hint)


def test_a_bundle_of_the_first_format(tmp_path: Path) -> None:
    old = laid(tmp_path / "old", {"manifest.json": b'{"format": 1}', "model.onnx": b""})
    message = f"has a manifest.json and no {SUMS}: it was made by an older relu_ops"
    refused(old, message, "build it again")


# ---------------------------------------------------------------- images


def test_a_bundle_without_images() -> None:
    files = {"act1.onnx": b"model", "manifest.json": b"{}", "not-an-image": b""}
    files_refused(whole(files), "holds no image (NAME.image)")


def test_an_image_is_called_after_its_target() -> None:
    files = {**FILES, "x86-64-v3.image": FILES["x86-64-v2.image"]}
    message = "x86-64-v3.image is for the target x86-64-v2, and must be called x86-64-v2.image"
    files_refused(whole(files), message)


def test_a_damaged_image_whose_digest_is_right() -> None:
    files = {**FILES, "x86-64-v3.image": b"relu_ops"}
    files_refused(
        whole(files),
        "x86-64-v3.image: has 8 bytes; the header of an image has 64",
        "it is not as relu_ops builds it: build the bundle again",
    )


@pytest.mark.parametrize("names", [("act1",), ("act2", "act1"), ("act1", "act2", "act3")])
def test_images_of_other_operators(names: tuple[str, ...]) -> None:
    files = {**FILES, "x86-64-v3.image": image("x86-64-v3", names)}
    files_refused(whole(files), "x86-64-v3.image has other operators than cuda.image")


# ---------------------------------------------------------------- choosing


def flags(*levels: str, without: str = "") -> set[str]:
    return {flag for level in levels for flag in TARGETS[level].flags} - {without}


@pytest.mark.parametrize("level", ["x86-64-v2", "x86-64-v3", "x86-64-v4"])
@pytest.mark.parametrize("architecture", ["x86_64", "AMD64"])
def test_the_best_target_is_chosen(level: str, architecture: str) -> None:
    bundle = native.open_files("shown", whole(FILES))
    assert bundle.choose(architecture, flags(level) | {"fpu", "rdrand"}) == level


@pytest.mark.parametrize("missing", sorted(flags("x86-64-v4") - flags("x86-64-v2")))
def test_one_feature_that_is_missing(missing: str) -> None:
    bundle = native.open_files("shown", whole(FILES))
    chosen = "x86-64-v2" if missing in flags("x86-64-v3") else "x86-64-v3"
    assert bundle.choose("x86_64", flags("x86-64-v4", without=missing)) == chosen


def test_of_images_that_require_as_much_the_last_is_taken() -> None:
    files = {
        "a.image": image("a"),
        "b.image": image("b"),
        "manifest.json": b"{}",
    }
    assert native.open_files("shown", whole(files)).choose("x86_64", []) == "b"


def test_a_refusal_lists_every_target_and_why() -> None:
    files = {
        "aarch64.image": image("aarch64", machine=2),
        **{k: v for k, v in FILES.items() if k not in ("x86-64-v3.image", "act1.onnx")},
    }
    bundle = native.open_files("shown", whole(dict(sorted(files.items()))))
    with pytest.raises(TargetError) as caught:
        bundle.choose("x86_64", flags("x86-64-v2", without="popcnt"))
    lacks = "the processor or its operating system lacks"
    assert str(caught.value) == (
        "no variant can run on this machine's CPU:\n"
        "  aarch64: the processor is x86_64 (not aarch64)\n"
        "  cuda: it runs on a GPU (not on the CPU)\n"
        f"  x86-64-v2: {lacks} popcnt\n"
        f"  x86-64-v4: {lacks} popcnt, "
        + ", ".join(f for f in TARGETS["x86-64-v4"].flags if f not in flags("x86-64-v2"))
        + "\nhint: build one for it with relu_ops.build(model, targets=['native'], path=...)"
    )
    for name in ("aarch64", "arm64"):
        assert bundle.choose(name, flags("aarch64")) == "aarch64"
    with pytest.raises(TargetError, match=re.escape("x86-64-v2: the processor is riscv64 (not x")):
        bundle.choose("riscv64", flags("x86-64-v4"))


# ---------------------------------------------------------------- loading

here = pytest.mark.skipif(platform.machine() != "x86_64", reason="the images are for x86-64")
NO_FLAGS: Files = {
    "a.image": image("a", flags=False),
    "cuda.image": image("cuda", machine=3),
    "manifest.json": b"{}",
}


@here
def test_this_machine_is_the_default() -> None:
    bundle = native.open_files("shown", whole(NO_FLAGS))
    assert bundle.choose() == "a"
    assert native.Operator(bundle, "act2").target == "a"
    levels = native.open_files("shown", whole(FILES))
    best = max(
        name for name in levels.targets if set(TARGETS[name].flags) <= native.processor_features()
    )
    assert levels.choose() == native.Operator(levels, "act1").target == best
    made_up = images.written([images.operator("f")], kernels=3, requires=("made_up",))
    lonely = native.open_image("shown", bytes(made_up.content))
    reason = "the processor or its operating system lacks made_up"
    with pytest.raises(TargetError, match=reason):
        native.Operator(lonely)
    with pytest.raises(TargetError, match=reason):
        lonely.choose()


@here
@pytest.mark.parametrize(
    ("target", "headline"),
    [
        ("x86-64-v9", "has no variant for x86-64-v9; it has"),
        (
            "cuda",
            "cuda cannot run on this machine: it runs on a GPU (not on the CPU); it has",
        ),
    ],
)
def test_a_target_that_cannot_be_had(target: str, headline: str) -> None:
    with pytest.raises(TargetError) as caught:
        native.Operator(native.open_files("shown", whole(NO_FLAGS)), "act1", target)
    assert str(caught.value) == (
        f"shown: {headline}:\n  a: can run\n  cuda: it runs on a GPU (not on the CPU)\n"
        "hint: name one that can run, or none for the best; or build it for that target too"
    )


@here
def test_operators_are_loaded_by_name() -> None:
    bundle = native.open_files("shown", whole(NO_FLAGS))
    assert [native.Operator(bundle, name).name for name in ("act1", "act2")] == ["act1", "act2"]
    only = native.open_image("shown", image("a", ("only",), flags=False))
    assert native.Operator(only).name == "only"
    with pytest.raises(ArgumentError) as caught:
        native.Operator(bundle)
    assert str(caught.value) == "shown: holds 2 operators; name must be one of act1, act2"
    with pytest.raises(ArgumentError) as caught:
        native.Operator(bundle, "act3")
    assert str(caught.value) == "shown: has no operator called act3; it has act1, act2"


# ---------------------------------------------------------------- replaced while it is read


def _exchange(path: Path, files: Files, number: int) -> None:
    """As bundle.write does where the system can: in one step, and then the old one goes."""
    new = laid(path.with_name(f"new{number}"), files)
    names = (os.fsencode(new), os.fsencode(path))
    assert ctypes.CDLL(None).renameat2(-100, names[0], -100, names[1], 2) == 0
    shutil.rmtree(new)


def _turn(path: Path, files: Files, number: int) -> None:
    """As Kubernetes does: the one link that all files lead through is turned."""
    old = path / "..data" / SUMS
    folder = old.resolve().parent if old.exists() else None
    laid(path / f"..{number}", files)
    (path / "..new").symlink_to(f"..{number}")
    (path / "..new").rename(path / "..data")
    if folder is not None:
        shutil.rmtree(folder)


@pytest.mark.parametrize("replace", [_exchange, _turn])
def test_a_reader_gets_one_bundle_or_the_other(
    tmp_path: Path, replace: Callable[[Path, Files, int], None]
) -> None:
    def version(number: int) -> dict[str, bytes]:
        return whole({**FILES, "act1.onnx": b"%d" % number * 5000, "manifest.json": b"%d" % number})

    path = laid(tmp_path / "a.bundle", version(0) if replace is _exchange else {})
    if replace is _turn:
        _turn(path, version(0), 0)
        for name in version(0):
            (path / name).symlink_to(f"..data/{name}")
    stop, seen = threading.Event(), set()

    def keep_replacing() -> None:
        for number in itertools.count(1):
            if stop.is_set():
                return
            replace(path, version(number % 7), number)

    thread = threading.Thread(target=keep_replacing)
    thread.start()
    try:
        for _ in range(1000):
            files = native.read_bundle(os.fspath(path)).files
            assert files == version(int(files["manifest.json"]))
            seen.add(files["manifest.json"])
    finally:
        stop.set()
        thread.join()
    assert len(seen) > 1
