"""Other machines, by a program that stands in for ssh: `verify --on`, `bench --on`, and failures.

tests/test_hosts_ssh.py does the same through a server, in machines of its own.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import numpy as np
import pytest

from relu_ops import __version__, cli, compiler, errors, graphs, hosts, targets, verify
from relu_ops.bench import environment, machines, plots, record, tables
from relu_ops.bundle import manifest
from relu_ops.bundle import store as bundles
from relu_ops.hosts import driver, ssh
from relu_ops.hosts.session import printable
from relu_ops.verification.hosts import There, send
from relu_ops.verification.mirror import Mirror

STAND_IN = Path(__file__).with_name("stand_in_ssh.py")
NATIVE = targets.native().name
FEW = ("--size", "16", "--size", "1k", "--peer", "relu_ops", "--peer", "numpy", "--quick")

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(autouse=True)
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a program of ours be ssh, and this Python be the hosts' own."""
    monkeypatch.setenv("RELU_OPS_SSH", f"'{sys.executable}' '{STAND_IN}'")
    monkeypatch.setenv("STAND_IN_FOLDER", str(tmp_path / "startup"))
    monkeypatch.setattr(ssh, "PYTHON", sys.executable)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs a command in this process: exit code, stdout, stderr."""

    def call(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        code = cli.main([str(argument) for argument in arguments])
        return code, *capsys.readouterr()

    return call


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bundle") / "leaky"
    compiler.build(graphs.leaky_relu(alpha=0.5), targets.runnable(), path)
    return path


@pytest.fixture(scope="module")
def liar(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle whose code does not do what its model says."""
    path = tmp_path_factory.mktemp("liar") / "liar"
    other = compiler.make(graphs.leaky_relu(alpha=0.25), ["x86-64-v2"])
    right = compiler.make(graphs.leaky_relu(alpha=0.5), ["x86-64-v2"])
    image = manifest.image_file("x86-64-v2")
    files = {name: right[name] for name in right if name not in (bundles.SUMS, manifest.FILE)}
    files[image] = other[image]
    bundles.write(path, bundles.pack(manifest.decode(right[manifest.FILE]), files))
    return path


def refused(run: Run, *arguments: object) -> str:
    """What a command says that is refused: exit code 2, nothing on stdout."""
    code, out, err = run(*arguments)
    assert (code, out) == (2, ""), (code, out, err)
    return err


# ---------------------------------------------------------------- verify


def test_verify_there_is_verify_here(run: Run, bundle: Path) -> None:
    code, out, err = run("verify", bundle, "--on", "alpha", "--json")
    assert (code, err) == (0, "")
    there = json.loads(out)
    assert there.pop("host") == "alpha"
    here = verify(bundle).to_dict()
    assert here.pop("host") == ""
    for report in (there, here):  # how many cases there was time for
        report["unchecked"] = []
    assert there == json.loads(json.dumps(here))
    assert {row["target"] for row in there["rows"]} == set(targets.runnable())


def test_verify_says_where(run: Run, bundle: Path) -> None:
    code, out, err = run("verify", bundle, "--on", "alpha", "--target", "x86-64-v2")
    assert (code, err) == (0, "")
    assert out.splitlines()[0] == "verify leaky_relu on alpha"
    assert out.splitlines()[-1] == "ok: every bit agrees"


def test_every_bit_pattern_there(run: Run, tmp_path: Path) -> None:
    compiler.build(graphs.leaky_relu(dtype="float16"), ["x86-64-v2"], tmp_path / "half")
    code, out, _ = run("verify", tmp_path / "half", "--on", "alpha", "--exhaustive", "--json")
    assert code == 0
    assert {row["cases"] > 65536 for row in json.loads(out)["rows"]} == {True}


def test_a_model_is_compiled_here_for_there(run: Run, tmp_path: Path) -> None:
    model = tmp_path / "m.onnx"
    model.write_bytes(graphs.add_relu().SerializeToString())
    code, out, err = run("verify", model, "--on", "base", "--target", "native")
    assert (code, err) == (0, "")
    assert f"\n{NATIVE:<11} NumPy reference" in out


def test_what_computes_something_else_there_is_found(run: Run, bundle: Path) -> None:
    """And what is printed finds it again."""
    code, out, _ = run("verify", bundle, "--on", "liar", "--target", "x86-64-v2")
    assert code == 1
    assert out.splitlines()[-1] == "FAILED"
    command = out.partition("reproduce: relu-ops ")[2].splitlines()[0]
    assert f" --target x86-64-v2 --case 0 --on liar --python {sys.executable}" in command
    assert run(*command.split())[0] == 1


def test_code_that_does_not_do_what_its_model_says(run: Run, liar: Path) -> None:
    code, out, _ = run("verify", liar, "--on", "alpha")
    assert code == 1 and "mismatch: " in out


def test_two_hosts(run: Run, bundle: Path) -> None:
    code, out, _ = run("verify", bundle, "--on", "alpha", "--on", "liar", "--json", "--case", "0")
    assert code == 1
    assert {host: report["ok"] for host, report in json.loads(out).items()} == {
        "alpha": True,
        "liar": False,
    }


def test_a_session_in_a_program(bundle: Path) -> None:
    with hosts.connect("alpha", sys.executable) as alpha:
        assert alpha.machine == targets.this_machine() and alpha.name == os.uname().nodename
        report = verify(bundle, on=alpha, target="x86-64-v2", case=0)
        assert report.ok and report.host == "alpha"
    with pytest.raises(errors.HostError, match="lost while it was to take a bundle"):
        verify(bundle, on=alpha)


def test_no_referee_is_needed_there(run: Run, bundle: Path) -> None:
    code, out, err = run("verify", bundle, "--on", "base", "--target", "x86-64-v2", "--json")
    assert (code, err) == (0, "")
    names = {row["referee"] for row in json.loads(out)["rows"]}
    assert {"onnxruntime", "onnx.reference"} <= names


# ---------------------------------------------------------------- arrays there and back


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import onnx.parser

    text = "two (float[N,M] x) => (float[N,M] y, bool[N,M] z) { y = Relu(x)  z = Less(y, x) }"
    model = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : 18]>\n{text}')
    path = tmp_path_factory.mktemp("two") / "two"
    compiler.build(model, ["x86-64-v2"], path)
    return path


def odd_arrays() -> Iterator[np.ndarray]:
    x = np.linspace(-3, 3, 24, dtype=np.float32).reshape(4, 6)
    memory = np.zeros(x.nbytes + 64, np.uint8)
    for offset in (1, 4, 60):
        view = memory[offset : offset + x.nbytes].view(np.float32).reshape(x.shape)
        view[...] = x
        yield view
    yield from (x, x.T, x[::-1, ::2], np.broadcast_to(x[:1], (4, 6)), x.astype(">f4"), x[:0])


@pytest.mark.parametrize(
    "x", list(odd_arrays()), ids=lambda x: f"{x.dtype.str}{x.shape}{x.strides}"
)
def test_any_array_goes_there_as_it_lies(two: Path, x: np.ndarray) -> None:
    with hosts.connect("alpha", sys.executable) as alpha:
        send(alpha, bundles.read(two))
        op = There(alpha, "two", "x86-64-v2", -1)
        y, z = op(x)
        assert np.array_equal(y, np.maximum(x, 0)) and np.array_equal(z, y < x)
        outs = np.full_like(y, 9), np.empty_like(z)
        assert all(a is b for a, b in zip(op(x, out=outs), outs, strict=True))
        assert np.array_equal(outs[0], y) and np.array_equal(outs[1], z)


def test_it_lies_there_as_it_does_here() -> None:
    from relu_ops.verification.hosts import _described

    for x in odd_arrays():
        mirror = Mirror(x)
        memory, there = driver._placed(json.loads(json.dumps(_described(mirror))), mirror.bytes)
        assert there.dtype == x.dtype and np.array_equal(there, x)
        if x.size:
            assert there.strides == x.strides
            low, high = (np.lib.array_utils.byte_bounds(a)[0] for a in (x, there))
            assert low % 256 == high % 256
        assert np.array_equal(memory, mirror.bytes)


def test_a_byte_written_beside_an_output_is_found() -> None:
    y = np.arange(8, dtype=np.float32)[::2]
    for at, wrong in {-1: "byte -1 ", 4: "byte 4 ", 28: "byte 28 "}.items():
        mirror = Mirror(y)
        found = mirror.bytes.copy()
        found[mirror.first + at] ^= 1
        with pytest.raises(AssertionError, match=f"^{wrong}from an output's begin was written"):
            mirror.copy_to(np.empty_like(y), found)
    target = np.empty_like(y)
    mirror.copy_to(target, mirror.bytes)
    assert np.array_equal(target, y)


# ---------------------------------------------------------------- bench


@pytest.fixture(scope="module")
def measured(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, str]:
    """A bundle that was measured on two hosts: where the records are, stdout and stderr."""
    folder = tmp_path_factory.mktemp("records")
    environment = {**os.environ, "RELU_OPS_SSH": f"'{sys.executable}' '{STAND_IN}'"}
    command = [
        *(sys.executable, "-m", "relu_ops", "bench", bundle, *FEW),
        *("--on", "alpha", "--on", "beta", "--python", sys.executable),
        *("--record", folder / "r.json", "--plot", folder / "pictures"),
    ]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    return folder, done.stdout, done.stderr


def test_a_record_names_its_machine(measured: tuple[Path, str, str], bundle: Path) -> None:
    folder, _, _ = measured
    alpha, beta = (record.read(folder / f"r-{host}.json") for host in ("alpha", "beta"))
    for found, on in ((alpha, "alpha"), (beta, "beta")):
        assert found.machine["on"] == on and found.machine["host"] == os.uname().nodename
        assert found.machine["cpu"] == targets.this_machine().cpu
        assert {t.contestant for t in found.timings} >= {"relu_ops", "numpy"}
        assert {t.verified for t in found.timings if not t.is_limit} == {record.BIT_FOR_BIT}
        assert {t.shape for t in found.timings} == {(16,), (1024,)}
    assert alpha.machine["affinity"] == sorted(os.sched_getaffinity(0))
    assert len(beta.machine["affinity"]) == 1 and beta.settings["threads"] == 1
    assert beta.machine["usable_memory_bytes"] == min(2 << 30, environment.usable_memory_bytes())
    (built,) = alpha.operators
    image = bundles.read(bundle).image(built.target)
    assert built.image_sha256 == bundles.digest_of(image)
    assert alpha.software["made_by"] == bundles.read(bundle).manifest.producer


def test_what_is_shown_of_two_hosts(measured: tuple[Path, str, str]) -> None:
    folder, out, err = measured
    lines = out.splitlines()
    node, cpu = os.uname().nodename, targets.this_machine().cpu
    assert lines[0].startswith(f"alpha ({node}): {cpu}, ")
    (beta,) = (line for line in lines if line.startswith("beta (") and "medians" not in line)
    assert f"beta ({node}): {cpu}, 1 of {os.cpu_count()} processor" in beta
    titles = next(line for line in lines if line.startswith("elements, contestant"))
    assert titles.split()[2:] == ["alpha", "beta"]
    rows = [line.split() for line in lines[lines.index(titles) + 1 : -1]]
    assert [row[:2] for row in rows if row[1] in ("relu_ops", "numpy")] == [
        [size, who] for size in ("16", "1k") for who in ("relu_ops", "numpy")
    ]
    assert all(len(row) == 6 and row[3] == "1.00x" and row[5][-1] == "x" for row in rows)
    assert lines[-1] == "verified against the NumPy reference on each machine: 8 of 8 equal it"
    for host in ("alpha", "beta"):
        assert f"{folder}/r-{host}.json: " in err
    drawn = {str(p.relative_to(folder)) for p in (folder / "pictures").rglob("*.svg")}
    assert "pictures/machines_warm.svg" in drawn
    assert {str(Path(name).parent) for name in drawn} == {
        "pictures", "pictures/alpha", "pictures/beta",
    }  # fmt: skip


def test_records_of_machines_are_set_side_by_side(
    run: Run, measured: tuple[Path, str, str], tmp_path: Path
) -> None:
    folder, shown, _ = measured
    alpha, beta = (folder / f"r-{host}.json" for host in ("alpha", "beta"))
    code, out, err = run("bench", "--compare", alpha, beta, "--plot", tmp_path / "p")
    assert (code, err) == (0, f"{tmp_path / 'p'}: 2 pictures of machines\n")
    assert shown.endswith(out)
    assert (tmp_path / "p" / "machines_warm.svg").read_bytes() == (
        folder / "pictures" / "machines_warm.svg"
    ).read_bytes()
    found = json.loads(run("bench", "--compare", alpha, beta, "--json")[1])
    assert [one["on"] for one in found["machines"]] == ["alpha", "beta"]
    row = next(row for row in found["rows"] if row["contestant"] == "relu_ops")
    medians = [cell["median_seconds"] for cell in row["cells"]]
    assert row["cells"][1]["ratio"] == pytest.approx(medians[1] / medians[0], rel=1e-2)
    assert row["cells"][0]["verified"] == record.BIT_FOR_BIT and row["cells"][0]["shape"] == [16]
    same = run("bench", "--compare", alpha, alpha)[1]
    assert same.splitlines()[1].split() == ["elements,", "contestant", "before", "us", "after",
                                            "us", "ratio"]  # fmt: skip
    assert refused(run, "bench", "--compare", alpha) == (
        "relu-ops: bench: --compare must be given at least 2 records (not 1)\n"
        "hint: relu-ops bench --record FILE writes one\n"
    )


def test_a_benchmark_on_the_base_install(run: Run, tmp_path: Path) -> None:
    """Everybody is asked, and who is not there says so; what is there is timed and right."""
    few = ("--size", "16", "--quick", "--graph", "scale_bias_leaky_relu", "--graph", "relu")
    code, out, err = run("bench", *few, "--on", "base", "--json", "--record", tmp_path / "r.json")
    assert code == 0, err
    found = record.read(tmp_path / "r.json")
    assert json.loads(out) == json.loads((tmp_path / "r.json").read_text())
    timed = {t.contestant for t in found.timings if not t.is_limit}
    assert timed == {"relu_ops", "relu_ops_out", "relu_ops_new", "numpy"}
    assert {t.case for t in found.timings} == {"scale_bias_leaky_relu", "relu"}
    assert {t.verified for t in found.timings if not t.is_limit} == {record.BIT_FOR_BIT}
    skipped = {s.contestant: s.kind for s in found.skipped}
    assert {skipped[name] for name in ("onnxruntime", "torch", "tvm")} == {"not installed"}


def test_the_target_is_the_best_that_is_there(
    run: Run, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And not the best that is here, of which nothing need be known."""
    plain = targets.Machine("x86_64", "Atom", frozenset(targets.TARGETS["x86-64-v2"].flags))
    monkeypatch.setattr(targets, "this_machine", lambda: plain)
    with hosts.connect("alpha", sys.executable) as alpha:
        assert targets.native(alpha.machine).name == NATIVE
    native = json.loads(run("bench", bundle, *FEW, "--on", "alpha", "--json")[1])
    of_graph = run("bench", "--graph", "relu", *FEW, "--on", "alpha", "--json")[1]
    for found in (native, json.loads(of_graph)):
        assert {t["target"] for t in found["timings"]} == {NATIVE}


# ---------------------------------------------------------------- what is refused

TRY = "see that this works: ssh {host} true"
FAILURES = {
    "nowhere": (
        "cannot be reached: ssh: Could not resolve hostname nowhere: Name or service not known",
        TRY,
    ),
    "down": ("cannot be reached: ssh: connect to host down port 22: Connection refused", TRY),
    "closed": (
        "ssh was refused: me@closed: Permission denied (publickey,password).",
        "no password is asked for: a key or an agent has to do, so that this works: "
        "ssh -o BatchMode=yes {host} true",
    ),
    "stranger": (
        "ssh does not know its key: Host key verification failed.",
        "log in once by hand, and see that the key is the right one: ssh {host}",
    ),
    "silent": (
        "no answer: ssh ended with 255: nothing was said",
        "see that this works: ssh {host} PYTHON --version",
    ),
    "windows": (
        "no answer: ssh ended with 1: 'sh' is not recognized as an internal or external command",
        "see that this works: ssh {host} PYTHON --version",
    ),
}


@pytest.mark.parametrize("host", FAILURES)
@pytest.mark.parametrize("verb", ["verify", "bench"])
def test_a_host_that_does_not_answer(run: Run, bundle: Path, verb: str, host: str) -> None:
    message, hint = (text.format(host=host) for text in FAILURES[host])
    hint = hint.replace("PYTHON", sys.executable)
    expected = f"relu-ops: {host}: {message}\nhint: {hint}\n"
    assert refused(run, verb, bundle, "--on", host) == expected


def test_one_that_is_missing_is_missed_before_anything_is_done(run: Run, bundle: Path) -> None:
    assert "nowhere: cannot be reached" in refused(
        run, "verify", bundle, "--on", "alpha", "--on", "nowhere"
    )


def test_no_ssh(run: Run, bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RELU_OPS_SSH", "no-such-ssh -F config")
    assert refused(run, "verify", bundle, "--on", "alpha") == (
        "relu-ops: alpha: cannot be reached: there is no program 'no-such-ssh' here\n"
        "hint: install OpenSSH's client, or say in RELU_OPS_SSH which program it is\n"
    )
    monkeypatch.setenv("RELU_OPS_SSH", "")
    monkeypatch.setenv("PATH", "/nowhere")
    assert "there is no program 'ssh' here" in refused(run, "bench", bundle, "--on", "alpha")


def test_the_program_on_the_path_is_ssh(
    run: Run, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "bin" / "ssh"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\nexec '{sys.executable}' '{STAND_IN}' \"$@\"\n")
    program.chmod(0o755)
    monkeypatch.delenv("RELU_OPS_SSH")
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    monkeypatch.setenv("STAND_IN_LOG", str(tmp_path / "log"))
    assert run("verify", bundle, "--on", "alpha", "--case", "0")[0] == 0
    given = json.loads((tmp_path / "log").read_text())
    assert given[-3:-1] == ["--", "alpha"] and "-oBatchMode=yes" in given[:-3]


@pytest.mark.parametrize("host", ["", "-oProxyCommand=touch x", "a b", "a,b", "a\nb", "\x1b"])
def test_a_host_is_no_option(run: Run, bundle: Path, host: str) -> None:
    expected = (
        f"relu-ops: --on must be a host as ssh knows it (not {host!r})\n"
        "hint: for example --on alpha or --on user@alpha.example; once for each host\n"
    )
    assert refused(run, "verify", bundle, f"--on={host}") == expected


def test_no_python(run: Run, bundle: Path) -> None:
    assert refused(run, "verify", bundle, "--on", "alpha", "--python", "/no/python3") == (
        "relu-ops: alpha: there is no Python called /no/python3 there\n"
        "hint: install Python 3.11 or newer there, or name one: --python /path/to/python3\n"
    )


def python_of(folder: Path, text: str) -> Path:
    """A program that is called as a Python, and is what a text says; its name is a hard one."""
    path = folder / "it's python"
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


def test_no_relu_ops(run: Run, bundle: Path, tmp_path: Path) -> None:
    python = python_of(tmp_path, f"exec '{sys.executable}' -S -E \"$@\"")
    found = f"{sys.executable}, Python {'.'.join(map(str, sys.version_info[:3]))}"
    assert refused(run, "verify", bundle, "--on", "alone", "--python", python) == (
        f"relu-ops: alone: relu_ops is not installed for {python} ({found}): "
        "ModuleNotFoundError: No module named 'relu_ops'\n"
        f"hint: there: {python} -m pip install relu_ops=={__version__}; "
        "another Python there can be named: --python /path/to/python3\n"
    )


def test_a_broken_relu_ops(run: Run, bundle: Path, tmp_path: Path) -> None:
    root = Path(cli.__file__).parents[1]
    python = python_of(tmp_path, f"PYTHONPATH='{root}' exec '{sys.executable}' -S \"$@\"")
    err = refused(run, "verify", bundle, "--on", "alone", "--python", python)
    assert err.startswith(f"relu-ops: alone: relu_ops cannot be used by {python} (")
    assert "ModuleNotFoundError: No module named 'ml_dtypes'\nhint: there: " in err


def test_a_python_that_is_none(run: Run, bundle: Path, tmp_path: Path) -> None:
    python = python_of(tmp_path, "echo 'no such option: -c' >&2; exit 3")
    err = refused(run, "verify", bundle, "--on", "alpha", "--python", python)
    assert err.startswith("relu-ops: alpha: no answer: ssh ended with 3: no such option: -c\n")


def test_another_version(run: Run, bundle: Path) -> None:
    err = refused(run, "bench", bundle, "--on", "old")
    assert err.startswith(f"relu-ops: old: has relu_ops 0.0.1 for {sys.executable} (")
    assert f"), and here is {__version__}: they must be the same\n" in err
    assert err.endswith(
        f"hint: there: {sys.executable} -m pip install relu_ops=={__version__}; "
        "or here: pip install relu_ops==0.0.1\n"
    )


def test_a_bundle_without_an_image_for_there(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "device"
    made = compiler.make(graphs.relu(), ["x86-64-v2"])
    text = made[manifest.FILE].replace(b"x86-64-v2", b"cuda-sm_90")
    del text  # a bundle for devices alone needs NVIDIA's compiler: refuse by name instead
    bundles.write(path, made)
    err = refused(run, "verify", path, "--on", "alpha", "--target", "x86-64-v3")
    assert err.startswith(f"relu-ops: alpha: {path}: ")
    assert "x86-64-v2" in err and "x86-64-v3" in err
    err = refused(run, "bench", path, "--on", "alpha", "--target", "x86-64-v3", *FEW)
    assert err.startswith("relu-ops: alpha: ") and "x86-64-v2" in err


def test_a_target_that_does_not_run_there(
    run: Run, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    err = refused(run, "bench", bundle, "--on", "alpha", "--target", "cuda", *FEW)
    if not hosts.connect("alpha", sys.executable).cuda.gpus:
        assert err.startswith("relu-ops: alpha: bench: target cuda cannot be measured: ")
        assert err.endswith(f"hint: measure for {', '.join(targets.runnable())}\n")
        assert refused(run, "verify", bundle, "--on", "alpha", "--device", "cuda").startswith(
            "relu-ops: alpha: "
        )


@pytest.mark.parametrize("verb", ["verify", "bench"])
def test_python_is_that_of_a_host(run: Run, bundle: Path, verb: str) -> None:
    assert refused(run, verb, bundle, "--python", "python3") == (
        f"relu-ops: {verb}: --python says which Python of another machine runs, and --on names "
        "none\nhint: give --on too, for example --on alpha, or leave it out\n"
    )
    assert refused(run, "bench", "--show", "r.json", "--on", "alpha") == (
        "relu-ops: bench: --show measures nothing, and --on was given as well\n"
        "hint: leave out one or the other\n"
    )


# ---------------------------------------------------------------- what is lost


@pytest.mark.parametrize("arguments", [("verify",), ("bench", *FEW)], ids=lambda a: a[0])
def test_a_connection_that_is_lost_in_the_middle(
    run: Run, bundle: Path, arguments: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    said = set()
    for most in (10, 400, 5000):  # in its greeting; while it says what it is; at work
        monkeypatch.setenv("STAND_IN_BYTES", str(most))
        err = refused(run, *arguments, bundle, "--on", "lost")
        assert err.startswith("relu-ops: lost: ")
        assert "Connection to lost closed by remote host." in err and "hint: " in err
        said.add(err.partition(": Conn")[0])
    assert len(said) == 3


def test_a_process_that_is_killed_there(run: Run, bundle: Path) -> None:
    assert refused(run, "bench", bundle, *FEW, "--on", "dying").splitlines()[-2:] == [
        "relu-ops: dying: while it was to measure, its process was ended by signal 9",
        "hint: a system does so where memory runs out: ask for smaller sizes",
    ]


def test_not_enough_memory_there(run: Run, bundle: Path) -> None:
    err = refused(run, "bench", bundle, "--size", "1024M", "--peer", "relu_ops", "--on", "beta")
    assert err.startswith("relu-ops: there is not enough memory: beta: MemoryError: ")


def test_what_nobody_meant_to_raise(run: Run, bundle: Path) -> None:
    """It is told with its place, and cannot touch the terminal."""
    err = refused(run, "bench", bundle, *FEW, "--on", "failing")
    assert err.startswith("relu-ops: failing: KeyError: '\\x1b[2J what' (")
    assert "sitecustomize.py, line" in err


@pytest.mark.parametrize("host", ["noisy", "csh", "fish"])
def test_whatever_the_shell_is_and_says(run: Run, bundle: Path, tmp_path: Path, host: str) -> None:
    shell = {"csh": "tcsh"}.get(host, host)
    if host != "noisy" and shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    python = python_of(tmp_path, f"exec '{sys.executable}' \"$@\"")
    command = ("verify", bundle, "--on", host, "--case", "0", "--python", python)
    code, out, err = run(*command)
    assert (code, err) == (0, "") and out.endswith("ok: every bit agrees\n")


def test_what_a_host_says_cannot_touch_the_terminal() -> None:
    assert printable("a\x1b[2J\nb\u202e\x07") == "a\\x1b[2J\nb\\u202e\\x07"


# ---------------------------------------------------------------- nothing is left


def drivers(mark: str) -> list[int]:
    """The processes whose command line or environment has a mark."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if mark.encode() in (folder / "environ").read_bytes():
                found.append(int(folder.name))
        except OSError:
            continue
    return [pid for pid in found if pid != os.getpid()]


@pytest.mark.parametrize("kind", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_nothing_is_left_there_when_it_is_stopped(
    bundle: Path, tmp_path: Path, kind: signal.Signals
) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    mark = f"RELU_OPS_TEST_MARK={tmp_path}"
    environment = {
        **os.environ,
        "TMPDIR": str(scratch),
        "RELU_OPS_TEST_MARK": str(tmp_path),
    }
    sizes = [text for k in range(200) for text in ("--size", str(100_000 + k))]
    command = [sys.executable, "-m", "relu_ops", "bench", bundle, *sizes, "--on", "alpha"]
    command += ["--python", sys.executable, "--peer", "relu_ops"]
    began = subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    wait_for(lambda: at_work(mark))
    began.send_signal(kind)
    _, err = began.communicate(timeout=30)
    if kind == signal.SIGINT:
        assert (began.returncode, err.splitlines()[-1]) == (130, "relu-ops: interrupted")
    wait_for(lambda: not drivers(mark))
    assert not list(scratch.iterdir())


WORKS_LONG = """
import time
from relu_ops.hosts import driver
driver.Desk.do_sleep = lambda self, blobs: time.sleep(60)
driver.main()
"""


def test_a_long_work_ends_when_nobody_asks_any_more() -> None:
    asked = subprocess.Popen(
        [sys.executable, "-c", WORKS_LONG], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert asked.stdin is not None and asked.stdout is not None
    assert asked.stdout.read(len(driver.MARK)) == driver.MARK
    driver.send(asked.stdin, {"do": "sleep"})
    asked.stdin.close()
    try:
        assert asked.wait(timeout=20) == 0
    finally:
        asked.kill()
        asked.stdout.close()


def at_work(mark: str) -> bool:
    """Whether the driver measures: it has loaded the benchmark's loops."""
    return any("_limit.so" in maps_of(pid) for pid in drivers(mark))


def maps_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/maps").read_text()
    except OSError:
        return ""


def wait_for(what: Callable[[], bool], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.05)


def test_it_needs_no_disk(run: Run, bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", "/nowhere")
    assert run("verify", bundle, "--on", "alpha", "--case", "0")[0] == 0


# ---------------------------------------------------------------- records, without measuring


def made_up(host: str | None, target: str, seconds: float, who: str = "relu_ops") -> record.Record:
    rows = tuple(
        record.Timing("relu", "float32", target, "warm", n, 8 * n, name, 1, (at * n,) * 3,
                      shape=(n,), verified="" if "limit" in name else record.BIT_FOR_BIT)
        for n in (1024, 65536)
        for name, at in ((who, seconds), ("limit: copy, 1 thread", seconds / 2))
    )  # fmt: skip
    machine = {"cpu": f"CPU of {host}", "affinity": [0], "processors": 4, "levels": [target]}
    machine |= {"host": host} if host else {}
    return record.Record(
        2, "2026-01-02T03:04:05+00:00", 1, machine, {}, {"threads": 1, "rounds": 3}, (), rows
    )


def test_machines_of_several_targets_side_by_side() -> None:
    found = [made_up("a", "x86-64-v4", 1e-9), made_up("b", "x86-64-v2", 3e-9)]
    found.append(made_up("b", "x86-64-v3", 2e-9, "numpy"))
    columns = machines.columns_of(found, ["r/one.json", "r/two.json", "r/three.json"])
    assert [c.label for c in columns] == ["a", "two", "three"]
    rows = machines.side_by_side(columns)
    assert [(r.elements, r.contestant) for r in rows] == [
        (n, who) for n in (1024, 65536) for who in ("relu_ops", "limit")
    ]
    first, limit = rows[:2]
    assert [cell and cell.ratio for cell in first.cells] == [1.0, 3.0, None]
    assert [cell and cell.target for cell in limit.cells] == ["x86-64-v4", "x86-64-v2", "x86-64-v3"]
    lines = tables.render_machines(columns, rows).splitlines()
    assert lines[0] == (
        "a: CPU of a, 1 of 4 processors, x86-64-v4, 1 thread, 2026-01-02T03:04:05+00:00"
    )
    assert lines[5].split() == ["elements,", "contestant", "a", "two", "three"]
    assert lines[6].split() == ["1k", "relu_ops", "1.02", "1.00x", "3.07", "3.00x", "-"]
    assert lines[-1].endswith("on each machine: 4 of 4 equal it")
    nothing = tables.render_machines(columns[:1], machines.side_by_side(columns[:1]))
    assert nothing.endswith("\nnothing is in more than one of the records")
    both = msgspec.structs.replace(found[0], timings=found[0].timings + found[1].timings)
    assert [c.title for c in machines.columns_of([both], ["r"])] == ["a, x86-64-v4", "a, x86-64-v2"]
    nameless = [made_up(None, "x86-64-v4", 1e-9)] * 2
    assert [c.label for c in machines.columns_of(nameless, ["x/p.json", "q.json"])] == ["p", "q"]


def test_pictures_of_machines(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="pip install 'relu_ops[bench]'")
    found = [made_up(host, "x86-64-v4", at) for host, at in (("a", 1e-9), ("b", 3e-9))]
    columns = machines.columns_of(found, ["", ""])
    first, second = (plots.draw_machines(columns, tmp_path / name) for name in "xy")
    assert [p.name for p in first] == ["machines_warm.png", "machines_warm.svg"]
    assert [p.read_bytes() for p in first] == [p.read_bytes() for p in second]
    assert plots.draw_machines(columns[:1], tmp_path / "z") == []


# ---------------------------------------------------------------- what is no answer


def framed(text: bytes) -> bytes:
    return len(text).to_bytes(8, "big") + text


@pytest.mark.parametrize(
    "answer",
    [
        *(framed(b) for b in (b"[]", b"{}", b"{", b"\xff", b'{"sizes":["a"]}', b'{"sizes":[-1]}')),
        b"\xff" * 8,
        b"\x00" * 7 + b"\x09{}",
    ],
)
@pytest.mark.parametrize("verb", ["verify", "bench"])
def test_what_is_no_greeting_is_refused(
    run: Run, bundle: Path, tmp_path: Path, verb: str, answer: bytes
) -> None:
    """A host that speaks otherwise than the driver does."""
    (tmp_path / "answer").write_bytes(driver.MARK + answer)
    python = python_of(tmp_path, f"cat '{tmp_path}/answer'")
    err = refused(run, verb, bundle, "--on", "alpha", "--python", python)
    assert err.startswith("relu-ops: alpha: no answer: ")


@pytest.mark.parametrize("text", [b'{"sizes":[],"other":1}', b'{"sizes":[],"answer":1,"tick":2}'])
def test_what_is_no_answer_is_refused(text: bytes) -> None:
    with hosts.connect("alpha", sys.executable) as alpha:
        assert alpha._process.stdout is not None
        alpha._process.stdout.close()
        alpha._process.stdout = io.BytesIO(framed(text))
        with pytest.raises(errors.HostError, match="lost while it was to answer") as caught:
            alpha.ask("describe")
        assert str(caught.value.__cause__) == "no answer"
