"""The command line: exact output, data on stdout, talk on stderr, exit codes."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnx.parser
import pytest

import relu_ops
from relu_ops import cache, cli, compiler, graphs, targets
from relu_ops.bench import tables
from relu_ops.bundle import manifest
from relu_ops.bundle import store as bundle
from relu_ops.command import verbs
from relu_ops.native import _python as native
from relu_ops.targets import CPU_TARGETS

ROOT = Path(relu_ops.__file__).parents[1]
NATIVE = targets.native().name
VERBS = (
    *("export", "build", "partition", "inspect", "run", "verify", "bench", "tune", "plot"),
    *("doctor", "cache", "wheel", "export-kernel", "config"),
)

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs a command in this process: exit code, stdout, stderr."""

    def call(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        try:
            code = cli.main([str(argument) for argument in arguments])
        except SystemExit as exit:
            assert isinstance(exit.code, int)
            code = exit.code
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of models."""
    folder = tmp_path_factory.mktemp("models")
    onnx.save(graphs.leaky_relu(alpha=0.5), folder / "leaky.onnx")
    onnx.save(graphs.add_relu(), folder / "add.onnx")
    onnx.save(graphs.relu("bfloat16"), folder / "narrow.onnx")
    two = "two (float[N] x) => (float[N] y, bool[N] z) { y = Relu(x)  z = Less(y, x) }"
    onnx.save(
        onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : 18]>\n{two}'),
        folder / "two.onnx",
    )
    (folder / "broken.onnx").write_bytes(b"not a model")
    return folder


@pytest.fixture(scope="module")
def bundles(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of bundles, one of each model."""
    folder = tmp_path_factory.mktemp("bundles")
    for model in models.glob("*.onnx"):
        if model.stem != "broken":
            compiler.build(model, "x86-64-v2", folder / model.stem)
    several = {"half": models / "leaky.onnx", "sum": models / "add.onnx"}
    compiler.build(several, "x86-64-v2", folder / "several")
    return folder


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(cache.DIRECTORY_VARIABLE, str(tmp_path / "cache"))
    return tmp_path / "cache"


def saved(path: Path, array: np.ndarray) -> Path:
    np.save(path, array)
    return path


# ---------------------------------------------------------------- the program


def test_version(run: Run) -> None:
    assert run("--version") == (0, f"relu-ops {relu_ops.__version__}\n", "")


@pytest.mark.parametrize(
    ("typed", "expected"),
    [("ver", "verify"), ("inspect --so", "--source"), ("inspect --source as", "assembly")],
)
def test_a_shell_completes_commands(run: Run, typed: str, expected: str) -> None:
    code, script, err = run("--print-completion", "bash")
    assert (code, err) == (0, "")
    words = typed.split()
    given = f"COMP_WORDS=(relu-ops {typed}); COMP_CWORD={len(words)}"
    command = f"{script}\n{given}\n_shtab_relu_ops\necho ${{COMPREPLY[@]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert expected in done.stdout.split()


def test_completion_for_zsh_and_without_its_package(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    code, script, _ = run("--print-completion", "zsh")
    assert code == 0 and script.startswith("#compdef relu-ops")
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "shtab" else find(name)
    )
    assert run("--print-completion", "bash") == (
        2,
        "",
        "relu-ops: relu-ops --print-completion needs the package shtab, which is not installed\n"
        "hint: pip install 'relu_ops[completion]'\n",
    )


def test_help_names_every_verb(run: Run) -> None:
    code, out, err = run("--help")
    assert (code, err) == (0, "")
    assert tuple(re.findall(r"^    ([a-z-]+)(?: {2,}|$)", out, re.MULTILINE)) == VERBS


@pytest.mark.parametrize("verb", VERBS)
def test_help_of_every_verb(run: Run, verb: str) -> None:
    code, out, err = run(verb, "--help")
    assert (code, err) == (0, "")
    assert out.startswith(f"usage: relu-ops {verb} ")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "relu-ops: error: the following arguments are required: VERB"),
        (["build"], "relu-ops build: error: the following arguments are required: model, --output"),
        (["run"], "relu-ops run: error: the following arguments are required: bundle"),
        (["run", "b", "--what"], "relu-ops: error: unrecognized arguments: --what"),
        (["verify"], "relu-ops verify: error: the following arguments are required: path"),
        (
            ["verify", "b", "--seed", "x"],
            "relu-ops verify: error: argument --seed: invalid int value: 'x'",
        ),
        (
            ["bench", "m", "--size", "-1"],
            "relu-ops bench: error: argument --size: must be a number of elements (not '-1')",
        ),
        (
            ["bench", "m", "--size", "1K"],
            "relu-ops bench: error: argument --size: must be a number of elements (not '1K')",
        ),
        (["plot", "m"], "relu-ops plot: error: the following arguments are required: --output"),
    ],
)
def test_bad_usage(run: Run, arguments: list[str], message: str) -> None:
    code, out, err = run(*arguments)
    assert (code, out) == (2, "")
    assert err.startswith("usage: relu-ops")
    assert err.splitlines()[-1] == message


@pytest.mark.parametrize("arguments", [["fly"], ["cache", "fly"], ["cache"]])
def test_unknown_verbs_and_actions(run: Run, arguments: list[str]) -> None:
    code, out, err = run(*arguments)
    assert (code, out) == (2, "")
    assert err.startswith("usage: relu-ops")


def test_without_docstrings() -> None:
    done = subprocess.run(
        [sys.executable, "-OO", "-m", "relu_ops", "--version"], capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_as_a_module() -> None:
    command = [sys.executable, "-m", "relu_ops", "cache", "list"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_reader_that_went_away(bundles: Path, tmp_path: Path) -> None:
    x = saved(tmp_path / "x.npy", np.ones(3, np.float32))
    reader, writer = os.pipe()
    os.close(reader)
    try:
        done = subprocess.run(
            [sys.executable, "-m", "relu_ops", "run", str(bundles / "leaky"), str(x)],
            stdout=writer,
            stderr=subprocess.PIPE,
            text=True,
            timeout=60,
        )
    finally:
        os.close(writer)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("closed", ["stdout", "stderr"])
def test_a_closed_stream(models: Path, tmp_path: Path, closed: str) -> None:
    """Neither ends in a traceback, and talk never takes the place of data."""
    command = [sys.executable, "-m", "relu_ops", "build", str(models / "leaky.onnx"), "--output"]
    shell = f'exec "$0" "$@" {">&-" if closed == "stdout" else "2>&-"}'
    done = subprocess.run(
        ["/bin/sh", "-c", shell, *command, str(tmp_path / "leaky.bundle")],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0
    if closed == "stdout":
        assert done.stderr == f"{tmp_path / 'leaky.bundle'}: built for native\n"
    else:
        assert re.fullmatch(r"[0-9a-f]{64}\n", done.stdout)


def test_what_the_terminal_cannot_show(bundles: Path, tmp_path: Path) -> None:
    link = tmp_path / "l\xe9aky\udcff.bundle"  # a name that is no UTF-8, which Linux allows
    link.symlink_to(bundles / "leaky")
    for encoding, shown in (("ascii", "l\\xe9aky\\udcff"), ("utf-8", "l\xe9aky\\udcff")):
        done = subprocess.run(
            [sys.executable, "-m", "relu_ops", "inspect", str(link)],
            capture_output=True,
            env={**os.environ, "PYTHONIOENCODING": encoding},
            timeout=60,
        )
        assert (done.returncode, done.stderr) == (0, b"")
        assert shown in done.stdout.decode("utf-8").splitlines()[0]


def test_not_enough_memory(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def exhaust(_: Any) -> int:
        raise MemoryError("Unable to allocate 3.47 EiB")

    monkeypatch.setitem(cli.VERBS, "doctor", (exhaust, "", ()))
    message = "relu-ops: there is not enough memory: Unable to allocate 3.47 EiB\n"
    assert run("doctor") == (2, "", message)


def test_an_interrupt(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(_: Any) -> int:
        raise KeyboardInterrupt

    monkeypatch.setitem(cli.VERBS, "doctor", (interrupt, "", ()))
    assert run("doctor") == (130, "", "relu-ops: interrupted\n")


# ---------------------------------------------------------------- export


def test_export(run: Run, tmp_path: Path) -> None:
    folder, count = tmp_path / "models", len(graphs.MODELS) + 1  # and their README
    assert run("export", folder, "--check")[2] == f"{folder}: {count} of {count} files differ\n"
    assert run("export", folder) == (0, "", f"{folder}: {count - 1} models\n")
    assert {p.stem for p in folder.glob("*.onnx")} == set(graphs.MODELS)
    assert run("export", folder, "--check") == (0, "", f"{folder}: 0 of {count} files differ\n")
    (folder / "relu.onnx").write_bytes(b"changed")
    (folder / "leaky_relu.onnx").unlink()
    code, out, err = run("export", folder, "--check")
    assert (code, sorted(out.splitlines())) == (1, ["leaky_relu.onnx", "relu.onnx"])
    assert err == f"{folder}: 2 of {count} files differ\n"
    assert (folder / "relu.onnx").read_bytes() == b"changed"


def test_the_models_of_the_repository_are_current(run: Run) -> None:
    folder = ROOT / "models"
    if not folder.is_dir():
        pytest.skip("relu_ops is installed without its repository")
    assert run("export", folder, "--check")[:2] == (0, "")


def test_export_into_a_file(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("work")
    message = f"relu-ops: export: folder must be a directory ({path} is a file)\n"
    message += "hint: name another folder\n"
    assert run("export", path) == (2, "", message)
    assert run("export", "/proc/models")[:2] == (2, "")


# ---------------------------------------------------------------- build


def test_build(run: Run, models: Path, tmp_path: Path) -> None:
    path = tmp_path / "leaky.bundle"
    arguments = [word for name in CPU_TARGETS for word in ("--target", name)]
    code, out, err = run("build", models / "leaky.onnx", *arguments, "--output", path)
    found = bundle.read(path)
    assert (code, out) == (0, f"{found.digest}\n")
    assert err == f"{path}: built for {', '.join(CPU_TARGETS)}\n"
    assert found.manifest.targets == CPU_TARGETS


def test_build_for_this_machine(run: Run, models: Path, tmp_path: Path) -> None:
    path = tmp_path / "leaky.bundle"
    code, out, err = run("build", models / "leaky.onnx", "--output", path)
    found = bundle.read(path)
    assert (code, out, err) == (0, f"{found.digest}\n", f"{path}: built for native\n")
    assert found.manifest.targets == (NATIVE,)


def test_build_of_several_models(run: Run, models: Path, tmp_path: Path) -> None:
    """They are named as their files are, or as they are said to be."""
    two, path = (models / "leaky.onnx", models / "add.onnx"), tmp_path / "a.bundle"
    code, out, err = run("build", *two, "--output", path)
    assert (code, out, err) == (0, f"{bundle.read(path).digest}\n", f"{path}: built for native\n")
    assert bundle.read(path).handle.operators == ("leaky", "add")
    assert run("build", *two, "--name", "a", "--name", "b c", "--output", path)[0] == 0
    assert bundle.read(path).handle.operators == ("a", "b c")
    assert run("build", two[0], "--name", "mine", "--output", path)[0] == 0
    assert bundle.read(path).handle.operators == ("mine",)
    assert run("build", two[0], "--output", path)[0] == 0
    assert bundle.read(path).handle.operators == ("leaky_relu",)  # as the graph is called


def test_build_refuses_wrong_names(run: Run, models: Path, tmp_path: Path) -> None:
    one, other = models / "leaky.onnx", models / "add.onnx"
    twice = "give each a name of its own: --name once for each model, in their order"
    each = "build: --name must be given once for each model"
    order = "hint: give them in the order of the models, or none"
    for arguments, message in {
        (one, other, "--name", "a"): f"{each} (2 models, 1 name)\n{order}",
        (one, "--name", "a", "--name", "b"): f"{each} (1 model, 2 names)\n{order}",
        (one, one): f"build: two operators would have the name 'leaky'\nhint: {twice}",
        (one, other, "--name", "a", "--name", "a"): "build: two operators would have the name 'a'\n"
        f"hint: {twice}",
        (one, "--name", "a\tb"): "an operator's name must be a printable text of 1 to 200 "
        "characters (not 'a\\tb')",
    }.items():
        refusal = f"relu-ops: {message}\n"
        assert run("build", *arguments, "--output", tmp_path / "out") == (2, "", refusal)
    assert os.listdir(tmp_path) == []


def test_build_refuses(run: Run, models: Path, tmp_path: Path) -> None:
    missing, out = tmp_path / "missing.onnx", tmp_path / "out"
    model = models / "leaky.onnx"
    assert run("build", missing, "--output", out) == (
        2,
        "",
        f"relu-ops: {missing}: cannot be read: No such file or directory\n"
        "hint: pass the path of an .onnx file; a relative one begins in the current directory\n",
    )
    assert run("build", model, "--target", "x86-64-v9", "--output", out) == (
        2,
        "",
        "relu-ops: target 'x86-64-v9' is not known\n"
        "hint: known targets: x86-64-v2, x86-64-v3, x86-64-v4, aarch64, cuda, native, cuda-sm_NN\n",
    )
    assert run("build", model, "--output", tmp_path) == (
        2,
        "",
        f"relu-ops: {tmp_path}: exists and is not a bundle, so it is not replaced\n"
        "hint: choose another path\n",
    )
    code, stdout, err = run("build", models / "broken.onnx", "--output", out)
    assert (code, stdout) == (2, "")
    broken = models / "broken.onnx"
    refusal = f"relu-ops: {broken}: is not an ONNX model in binary form: it is text\nhint: "
    assert err.startswith(refusal)
    assert os.listdir(tmp_path) == []


# ---------------------------------------------------------------- run


def test_run_prints(run: Run, bundles: Path, tmp_path: Path) -> None:
    x = saved(tmp_path / "x.npy", np.float32([-1, -0.0, 2.5]))
    assert run("run", bundles / "leaky", x) == (0, "[-0.5 -0.   2.5]\n", "")
    assert run("run", bundles / "two", x) == (
        0,
        "[ 0.  -0.   2.5]\n[False False False]\n",
        "",
    )


def test_run_writes(run: Run, bundles: Path, tmp_path: Path) -> None:
    x = saved(tmp_path / "x.npy", np.float32([[-1, 3]]))
    y = tmp_path / "y.npy"
    assert run("run", bundles / "leaky", x, "--output", y) == (
        0,
        "",
        f"{y}: float32[1, 2], by x86-64-v2\n",
    )
    assert np.load(y).tolist() == [[-0.5, 3]]
    assert run("run", bundles / "add", x, x, "--output", y)[0] == 0
    assert np.load(y).tolist() == [[0, 6]]


def test_run_of_a_named_operator(run: Run, bundles: Path, tmp_path: Path) -> None:
    x = saved(tmp_path / "x.npy", np.float32([-1, 3]))
    path = bundles / "several"
    assert run("run", path, x, "--name", "half") == (0, "[-0.5  3. ]\n", "")
    assert run("run", path, x, x, "--name", "sum") == (0, "[0. 6.]\n", "")
    assert run("run", path, x) == (
        2,
        "",
        f"relu-ops: {path}: holds 2 operators; name must be one of half, sum\n",
    )
    assert run("run", path, x, "--name", "other") == (
        2,
        "",
        f"relu-ops: {path}: has no operator called other; it has half, sum\n",
    )


def test_run_writes_over_its_input(run: Run, bundles: Path, tmp_path: Path) -> None:
    x = saved(tmp_path / "x.npy", np.full(100_000, -2, np.float32))
    assert run("run", bundles / "leaky", x, "--output", x)[0] == 0
    assert (np.load(x) == -1).all()


def test_run_of_several_outputs(run: Run, bundles: Path, tmp_path: Path) -> None:
    x = saved(tmp_path / "x.npy", np.float32([-1, 3]))
    y, z = tmp_path / "y.npy", tmp_path / "z.npy"
    assert run("run", bundles / "two", x, "--output", y, "--output", z) == (
        0,
        "",
        f"{y}: float32[2], by x86-64-v2\n{z}: bool[2], by x86-64-v2\n",
    )
    assert np.load(z).tolist() == [False, False]
    z.unlink()
    assert run("run", bundles / "two", x, "--output", y) == (
        2,
        "",
        "relu-ops: two has 2 outputs; --output names 1\n"
        "hint: give --output once for each output, in their order, or not at all\n",
    )


@pytest.mark.parametrize("shape", [(), (0,), (2, 0, 3), (1,)], ids=str)
def test_run_on_small_arrays(
    run: Run, bundles: Path, tmp_path: Path, shape: tuple[int, ...]
) -> None:
    x = saved(tmp_path / "x.npy", np.full(shape, -1, np.float32))
    assert run("run", bundles / "leaky", x, "--output", x)[0] == 0
    assert np.load(x).shape == shape and (np.load(x) == -0.5).all()


def test_run_on_other_layouts(run: Run, bundles: Path, tmp_path: Path) -> None:
    array = np.arange(-6, 6).reshape(3, 4)
    for given in (array.astype(">f4"), np.asfortranarray(array.astype("<f4"))):
        x = saved(tmp_path / "x.npy", given)
        assert run("run", bundles / "leaky", x, "--output", x)[0] == 0
        assert np.load(x).tolist() == np.where(array < 0, array / 2, array).tolist()


def test_run_on_bfloat16(run: Run, bundles: Path, tmp_path: Path) -> None:
    x = saved(tmp_path / "x.npy", np.array([-1, 2], ml_dtypes.bfloat16))
    assert run("run", bundles / "narrow", x) == (0, "[0 2]\n", "")


def test_run_with_a_digest(run: Run, bundles: Path, tmp_path: Path) -> None:
    x = saved(tmp_path / "x.npy", np.float32([4]))
    path = bundles / "leaky"
    digest = bundle.read(path).digest
    assert run("run", path, x, "--digest", digest) == (0, "[4.]\n", "")
    assert run("run", path, x, "--digest", "0" * 64) == (
        2,
        "",
        f"relu-ops: {path}: SHA256SUMS has the digest {digest}; it must have {'0' * 64}\n"
        "hint: take the one that was meant or, if it was built anew on purpose, its new digest\n",
    )


def test_run_with_a_target(run: Run, bundles: Path, tmp_path: Path) -> None:
    x = saved(tmp_path / "x.npy", np.float32([4]))
    path = bundles / "leaky"
    assert run("run", path, x, "--target", "x86-64-v2") == (0, "[4.]\n", "")
    assert run("run", path, x, "--target", "x86-64-v4") == (
        2,
        "",
        f"relu-ops: {path}: has no variant for x86-64-v4; it has:\n  x86-64-v2: can run\n"
        "hint: name one that can run, or none for the best; or build it for that target too\n",
    )


def test_run_refuses(run: Run, bundles: Path, tmp_path: Path) -> None:
    path = bundles / "leaky"
    x = saved(tmp_path / "x.npy", np.ones(2))
    archive = tmp_path / "x.npz"
    np.savez(archive, x=np.ones(2, np.float32))
    objects = tmp_path / "objects.npy"
    np.save(objects, np.array([None]), allow_pickle=True)
    empty = tmp_path / "empty.npy"
    empty.write_bytes(b"")
    missing = tmp_path / "missing.npy"
    float32 = saved(tmp_path / "y.npy", np.ones(2, np.float32))
    each = "hint: pass one array for each, by position, and where to write as out"
    exact = {
        (): f"leaky_relu takes 1 input (x), not 0\n{each}",
        (float32, float32): f"leaky_relu takes 1 input (x), not 2\n{each}",
        (x,): "leaky_relu: x.dtype must be float32 (not float64)\n"
        "hint: convert it first, for example with x.astype('float32')",
        (missing,): f"{missing}: cannot be read: No such file or directory\n"
        "hint: write one with numpy.save",
        (tmp_path,): f"{tmp_path}: cannot be read: Is a directory\nhint: write one with numpy.save",
        (float32, "--output", tmp_path): f"{tmp_path}: cannot be written: Is a directory\n"
        "hint: name another file with --output",
    }
    for arguments, message in exact.items():
        assert run("run", path, *arguments) == (2, "", f"relu-ops: {message}\n")
    for file in (archive, objects, empty):
        code, out, err = run("run", path, file)
        assert (code, out) == (2, "")
        assert err.startswith(f"relu-ops: {file}: is not a readable .npy file: ")
    assert run("run", missing, x) == (
        2,
        "",
        f"relu-ops: {missing}: no bundle can be read there: No such file or directory\n"
        "hint: pass the directory of a bundle, which relu_ops.build or relu-ops build writes\n",
    )


# ---------------------------------------------------------------- verify


def test_verify(run: Run, bundles: Path) -> None:
    code, out, err = run("verify", bundles / "leaky")
    assert (code, err) == (0, "")
    lines = [re.sub(r"[\d,]+ {2,}0 +0$", "N 0 0", line) for line in out.splitlines()]
    lines = [re.sub(r"^( +)[\d,]+ x .*", "deviation", line) for line in lines]
    lines = [re.sub(r" {2,}", "  ", line) for line in lines if line != "deviation"]
    assert lines == [
        "verify leaky_relu",
        "target  referee  elements  mismatches  ULP",
        "x86-64-v2  NumPy reference  N 0 0",
        "x86-64-v2  onnxruntime  N 0 0",
        "x86-64-v2  onnx.reference  N 0 0",
        "x86-64-v2  function body  N 0 0",
        "ok: every bit agrees",
    ]


def test_verify_as_json(run: Run, bundles: Path) -> None:
    code, out, err = run("verify", bundles / "add", "--json", "--case", "0")
    assert (code, err) == (0, "")
    assert json.loads(out)["ok"] is True


def test_verify_fails(run: Run, models: Path, tmp_path: Path) -> None:
    """A bundle whose image computes something else than its model says."""
    path, name = tmp_path / "wrong.bundle", "x86-64-v2.image"
    files = compiler.make(models / "leaky.onnx", "x86-64-v2")
    others = compiler.make(graphs.leaky_relu(alpha=0.25), "x86-64-v2")
    held = manifest.decode(files[manifest.FILE])
    contents = {"leaky_relu.onnx": files["leaky_relu.onnx"], name: others[name]}
    bundle.write(path, bundle.pack(held, contents))
    code, out, err = run("verify", path, "--case", "0")
    assert (code, err) == (1, "")
    assert out.splitlines()[-1] == "FAILED"
    reproduce = f"relu-ops verify {path} --seed 0 --target x86-64-v2 --case 0"
    assert f"  reproduce: {reproduce}" in out.splitlines()
    code, out, _ = run("verify", path, "--json", "--case", "0")
    assert code == 1 and json.loads(out)["ok"] is False


def test_verify_of_a_named_operator(run: Run, bundles: Path, tmp_path: Path) -> None:
    path = bundles / "several"
    for name in ("half", "sum"):
        code, out, err = run("verify", path, "--name", name, "--case", "0")
        assert (code, err) == (0, "")
        assert out.startswith(f"verify {name}\n")
    assert run("verify", path) == (
        2,
        "",
        f"relu-ops: {path}: holds 2 operators; name must be one of half, sum\n",
    )


def test_a_reproduction_names_the_operator(run: Run, models: Path, tmp_path: Path) -> None:
    path, name = tmp_path / "a b", "x86-64-v2.image"
    right = {"one": models / "leaky.onnx", "the other": models / "add.onnx"}
    wrong = {"one": graphs.leaky_relu(alpha=0.25), "the other": models / "add.onnx"}
    files, others = compiler.make(right, "x86-64-v2"), compiler.make(wrong, "x86-64-v2")
    held = manifest.decode(files[manifest.FILE])
    contents = {f: files[f] for f in held.files} | {name: others[name]}
    bundle.write(path, bundle.pack(held, contents))
    code, out, _ = run("verify", path, "--name", "one", "--case", "0")
    reproduce = f"relu-ops verify '{path}' --name one --seed 0 --target x86-64-v2 --case 0"
    assert code == 1 and f"  reproduce: {reproduce}" in out.splitlines()
    assert run("verify", path, "--name", "the other", "--case", "0")[0] == 0


def test_verify_refuses(run: Run, bundles: Path, tmp_path: Path) -> None:
    missing = tmp_path / "missing"
    assert run("verify", missing) == (
        2,
        "",
        f"relu-ops: {missing}: cannot be read: No such file or directory\n"
        "hint: pass the path of an .onnx file; a relative one begins in the current directory\n",
    )
    assert run("verify", bundles / "leaky", "--target", "x86-64-v4") == (
        2,
        "",
        f"relu-ops: {bundles / 'leaky'}: has no variant for x86-64-v4; it has:\n"
        "  x86-64-v2: can run\n"
        "hint: name one that can run, or none for the best; or build it for that target too\n",
    )
    for case in ("-1", "99999"):
        code, out, err = run("verify", bundles / "leaky", "--case", case)
        assert (code, out) == (2, "")
        assert re.fullmatch(rf"relu-ops: verify: case must be 0 to \d+ \(not {case}\)\n", err)
    message = "relu-ops: verify: seed must be at least 0 (not -1)\nhint: leave it out for 0\n"
    assert run("verify", bundles / "leaky", "--seed", "-1") == (2, "", message)
    code, out, err = run("verify", bundles / "add", "--exhaustive", "--case", "0")
    assert (code, out) == (2, "")
    assert err == (
        "relu-ops: add_relu: every bit pattern can be checked for one input of any shape\n"
        "hint: leave out exhaustive; special values and random draws are checked all the same\n"
    )


# ---------------------------------------------------------------- bench


FEW = ("--size", "16", "--peer", "relu_ops", "--peer", "numpy", "--quick")


def test_bench_as_json(run: Run, bundles: Path, tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    code, out, err = run("bench", bundles / "leaky", *FEW, "--json", "--record", path)
    assert (code, err.splitlines()[-1]) == (0, f"{path}: 4 timings")
    found = json.loads(out)
    assert found == json.loads(path.read_text())
    assert {t["contestant"] for t in found["timings"]} >= {"relu_ops", "numpy"}
    assert found["operators"][0]["image_bytes"] > 0
    code, out, err = run("bench", "--show", path)
    assert (code, err) == (0, "")
    assert out.splitlines()[2] == f"leaky_relu, float32, {found['timings'][0]['target']}, warm"
    code, out, err = run("bench", "--compare", path, path)
    assert (code, err) == (0, "")
    assert out.splitlines()[-1].startswith("0 of 4 differ ")
    code, out, err = run("bench", "--compare", path, path, "--json")
    assert (code, err) == (0, "")
    assert {row["ratio"] for row in json.loads(out)} == {1.0}


def test_native_is_the_best_that_a_bundle_has(run: Run, bundles: Path, tmp_path: Path) -> None:
    """One word, one meaning, whatever the verb; and a report names what was looked at."""
    path = bundles / "leaky"
    x = saved(tmp_path / "x.npy", np.ones(3, np.float32))
    y = tmp_path / "y.npy"
    native = ("--target", "native")
    assert run("run", path, x, "--output", y, *native)[2] == f"{y}: float32[3], by x86-64-v2\n"
    assert "\nx86-64-v2   NumPy reference" in run("verify", path, *native)[1]
    assert "\nleaky_relu, float32, x86-64-v2, warm\n" in run("bench", path, *FEW, *native)[1]
    own = run("inspect", path, "--source", "assembly", "--target", "x86-64-v2")
    assert run("inspect", path, "--source", "assembly", *native) == own


def test_bench_of_a_model(run: Run, models: Path) -> None:
    code, out, _ = run("bench", models / "leaky.onnx", *FEW)
    assert code == 0
    assert "best peer / relu_ops" in out


@pytest.mark.parametrize(("text", "elements"), [("16", 16), ("64k", 65536), ("3M", 3 << 20)])
def test_sizes_can_be_written_as_the_tables_do(text: str, elements: int) -> None:
    assert verbs._count(text) == elements
    assert text == tables.count(elements)


def test_bench_of_a_graph(run: Run) -> None:
    code, out, _ = run("bench", "--graph", "add_relu", *FEW, "--mode", "cold", "--threads", "1")
    assert code == 0
    assert f"add_relu, float32, {NATIVE}, cold" in out


def test_bench_refuses(run: Run, tmp_path: Path) -> None:
    missing = tmp_path / "missing.onnx"
    message = (
        f"relu-ops: {missing}: cannot be read: No such file or directory\n"
        "hint: pass the path of an .onnx file; a relative one begins in the current directory\n"
    )
    assert run("bench", missing, "--size", "16") == (2, "", message)
    code, out, err = run("bench", "--graph", "gelu")
    assert (code, out) == (2, "")
    assert err.startswith("relu-ops: bench: case must be one of relu, ")
    for count in ("", "0", "257", "2\n", "\u0662"):
        refusal = (
            f"relu-ops: bench: threads must be 1 to 256 (not {count!r})\n"
            "hint: leave it out for as many as the process may use\n"
        )
        assert run("bench", "--threads", count) == (2, "", refusal)
    shown = f"relu-ops: {missing}: cannot be read: No such file or directory\n"
    shown += "hint: relu-ops bench --record FILE writes one\n"
    assert run("bench", "--show", missing) == (2, "", shown)


def test_bench_finds_out_first_where_it_cannot_write(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def measure(*_: object) -> None:
        raise AssertionError("it measured")

    monkeypatch.setattr("relu_ops.bench.command.run", measure)
    (tmp_path / "file").write_text("")
    missing = tmp_path / "missing" / "r.json"
    for arguments, message in {
        ("--record", missing): f"{missing}: cannot be written: {missing.parent} is missing or "
        "read-only\nhint: name another file",
        ("--record", tmp_path): f"{tmp_path}: cannot be written: it is a directory\n"
        "hint: name a file, for example r.json",
        ("--plot", tmp_path / "file"): f"{tmp_path / 'file'}: cannot be made: File exists",
        ("--plot", "/proc/pictures"): "/proc/pictures: cannot be made: No such file or directory",
    }.items():
        assert run("bench", *arguments) == (2, "", f"relu-ops: {message}\n")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    code, out, err = run("bench", "--plot", tmp_path / "pictures")
    assert (code, out) == (2, "")
    assert err.startswith("relu-ops: drawing a benchmark needs the package matplotlib, ")


# ---------------------------------------------------------------- cache


def test_cache(run: Run, own_cache: Path) -> None:
    assert run("cache", "list") == (0, "", "")
    key = "ab" * 32
    found = cache.fetch(key, lambda: compiler.make(graphs.relu(), "x86-64-v2"))
    size = sum(map(len, found.contents.values()))
    assert run("cache", "list") == (0, f"{key[:16]}  {size:>9,}  x86-64-v2   relu\n", "")
    assert run("cache", "clear") == (0, "", f"{own_cache}: 1 bundles removed\n")
    assert run("cache", "clear") == (0, "", f"{own_cache}: 0 bundles removed\n")
    assert run("cache", "list") == (0, "", "")


# ---------------------------------------------------------------- verbs with tests of their own


def test_inspect(run: Run, bundles: Path, models: Path, tmp_path: Path) -> None:
    for path in (bundles / "leaky", models / "leaky.onnx"):
        code, out, err = run("inspect", path)
        assert (code, err) == (0, "")
        assert "leaky_relu" in out
        code, out, err = run("inspect", path, "--json")
        assert (code, err) == (0, "")
        assert isinstance(json.loads(out), dict)
    either = "do not go together\nhint: leave out one or the other"
    alone = (
        "chooses what --source shows, and that is not given\n"
        "hint: give --source too, for example --source assembly, or leave it out"
    )
    for arguments, message in {
        ("--source", "tir", "--json"): f"--source and --json {either}",
        ("--source", "tir", "--rebuild-check"): f"--source and --rebuild-check {either}",
        ("--target", "cuda"): f"--target {alone}",
        ("--name", "leaky_relu"): f"--name {alone}",
    }.items():
        refusal = f"relu-ops: inspect: {message}\n"
        assert run("inspect", bundles / "leaky", *arguments) == (2, "", refusal)
    several = ("inspect", bundles / "several", "--source", "assembly", "--target", "x86-64-v2")
    code, out, err = run(*several, "--name", "sum")
    assert (code, err) == (0, "") and out.startswith("sum::tile_0:")
    assert run(*several)[0] == 2
    code, out, err = run("inspect", tmp_path / "missing")
    assert (code, out) == (2, "")
    assert err.startswith("relu-ops: ")


def test_doctor(run: Run) -> None:
    code, out, err = run("doctor")
    assert (code, err) == (0, "") and out
    code, out, err = run("doctor", "--json")
    assert (code, err) == (0, "")
    assert isinstance(json.loads(out), dict)


def test_config(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code, out, err = run("config", "--include-dir")
    assert (code, err) == (0, "")
    include = Path(out.removesuffix("\n"))
    assert (include / "relu_ops.h").is_file() and (include / "dlpack" / "dlpack.h").is_file()
    folder = include.parent
    assert run("config", "--library") == (0, f"{folder / 'librelu_ops.so'}\n", "")
    assert run("config", "--cmake-dir") == (0, f"{folder / 'cmake'}\n", "")
    assert run("config", "--pkg-config-path") == (0, f"{folder / 'pkgconfig'}\n", "")
    assert (folder / "cmake" / "relu_opsConfig.cmake").is_file()
    assert (folder / "pkgconfig" / "relu_ops.pc").is_file()
    cflags, libs = f"-I{include}", f"-L{folder} -Wl,-rpath,{folder} -lrelu_ops"
    assert run("config", "--cflags") == (0, f"{cflags}\n", "")
    assert run("config", "--libs", "--cflags") == (0, f"{cflags} {libs}\n", "")
    assert run("config") == (
        2,
        "",
        "relu-ops: config: nothing was asked for\nhint: for example --cflags --libs\n",
    )
    odd = tmp_path / "a folder" / "native"
    shutil.copytree(include, odd / "include")
    monkeypatch.setattr(native, "__file__", str(odd / "_python.so"))
    missing = f"relu-ops: {odd / 'librelu_ops.so'}: is not there\nhint: install relu_ops again\n"
    assert run("config", "--cflags") == (2, "", missing)
    (odd / "librelu_ops.so").touch()
    assert run("config", "--cflags") == (0, f"-I'{odd / 'include'}'\n", "")
    assert run("config", "--library") == (0, f"{odd / 'librelu_ops.so'}\n", "")


def test_plot_of_several_operators(run: Run, models: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="pip install 'relu_ops[plot]'")
    picture, path = tmp_path / "p.svg", tmp_path / "two.bundle"
    two = {"half": models / "leaky.onnx", "whole": graphs.relu()}
    compiler.build(two, "x86-64-v2", path)
    code, out, err = run("plot", path, models / "leaky.onnx", "--output", picture)
    assert (code, out, err) == (0, "", f"{picture}: half, whole, leaky from -10 to 10\n")


def test_plot(run: Run, bundles: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="pip install 'relu_ops[plot]'")
    picture = tmp_path / "leaky.svg"
    for low in ("-2", "-2.", "-.2", "-2e-3", "-2.5E+1", "-.5e0"):
        code, out, err = run("plot", bundles / "leaky", "--output", picture, "--range", low, "2")
        assert (code, out) == (0, "")
        assert err == f"{picture}: leaky from {float(low):g} to 2\n"
        assert picture.stat().st_size > 0
    message = (
        "relu-ops: plot: low must be finite (not -inf)\n"
        "hint: for example -10 and 10, which are the default\n"
    )
    infinite = ("--range", "-inf", "2")
    assert run("plot", bundles / "leaky", "--output", picture, *infinite) == (2, "", message)
    code, out, err = run("plot", tmp_path / "missing.onnx", "--output", picture)
    assert (code, out) == (2, "")
    assert err.startswith("relu-ops: ")
