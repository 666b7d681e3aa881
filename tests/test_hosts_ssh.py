"""Other machines through the real ssh: two of them, in network namespaces with names of their own.

One is as large as this machine; the other has one processor and little memory. What can be tested
with no server is in tests/test_hosts.py.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from relu_ops import cli, compiler, graphs, targets
from relu_ops.bench import record

SSHD = "/usr/sbin/sshd"
ADDRESSES = 3 << 30
"""Bytes of them that a process of the small machine may have."""
FEW = ("--size", "16", "--size", "4k", "--peer", "relu_ops", "--peer", "numpy", "--quick")


def why_not() -> str | None:
    """Why no such machines can be made here."""
    if os.geteuid() != 0:
        return "network namespaces and a server on a port of its own need root"
    for program in (SSHD, "ssh", "ssh-keygen", "ip", "unshare", "taskset", "prlimit"):
        if shutil.which(program) is None:
            return f"there is no {program}"
    probe = f"relu-ops-{os.getpid()}"
    made = subprocess.run(["ip", "netns", "add", probe], capture_output=True, text=True)
    if made.returncode != 0:
        return f"no network namespace can be made: {made.stderr.strip()}"
    subprocess.run(["ip", "netns", "del", probe], check=True)
    return None


@dataclass
class Machine:
    """A host: its name, its namespace, its address and its server."""

    name: str
    space: str
    link: str
    address: str
    server: subprocess.Popen[bytes]

    def processes(self) -> set[int]:
        """Those that run there, the server itself apart."""
        said = subprocess.run(
            ["ip", "netns", "pids", self.space], capture_output=True, text=True, check=True
        )
        return set(map(int, said.stdout.split())) - {self.server.pid}


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


def start(folder: Path, number: int, name: str, before: tuple[str, ...] = ()) -> Machine:
    """Make a machine and start its server."""
    space, link = f"ro-{os.getpid()}-{name}", f"ro{os.getpid()}{number}"
    own, other = (f"198.18.{os.getpid() % 250}.{4 * number + k}" for k in (1, 2))
    ip("netns", "add", space)
    ip("link", "add", link, "type", "veth", "peer", "name", "eth0", "netns", space)
    ip("address", "add", f"{own}/30", "dev", link)
    ip("link", "set", link, "up")
    for device, address in (("lo", "127.0.0.1/8"), ("eth0", f"{other}/30")):
        ip("-n", space, "address", "add", address, "dev", device)
        ip("-n", space, "link", "set", device, "up")
    key, config = folder / f"{name}_key", folder / f"{name}_sshd_config"
    keygen(key)
    config.write_text(
        f"ListenAddress {other}\nHostKey {key}\nPidFile none\nUsePAM no\nStrictModes no\n"
        f"AuthorizedKeysFile {folder}/me.pub\nPermitRootLogin yes\n"
        "PasswordAuthentication no\nKbdInteractiveAuthentication no\nUseDNS no\n"
    )
    Path("/run/sshd").mkdir(exist_ok=True)
    inside = ["unshare", "--uts", "sh", "-c", f'hostname {name}; exec "$@"', "sh", *before]
    server = subprocess.Popen(
        ["ip", "netns", "exec", space, *inside, SSHD, "-D", "-e", "-f", str(config)],
        stdin=subprocess.DEVNULL,
        stderr=(folder / f"{name}.log").open("wb"),
    )
    return Machine(name, space, link, other, server)


def keygen(path: Path) -> None:
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", path], check=True)


def stop(machine: Machine) -> None:
    for pid in machine.processes():
        os.kill(pid, signal.SIGKILL)
    machine.server.kill()
    machine.server.wait()
    ip("netns", "del", machine.space)


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Machine]]:
    """The machines, and a configuration of ssh that knows them and some that do not answer."""
    if reason := why_not():
        pytest.skip(reason)
    folder = tmp_path_factory.mktemp("ssh")
    keygen(folder / "me")
    keygen(folder / "nobody")
    small = ("taskset", "-c", str(min(os.sched_getaffinity(0))), "prlimit", f"--as={ADDRESSES}")
    machines = {}
    try:
        machines["alpha"] = start(folder, 0, "alpha")
        machines["beta"] = start(folder, 1, "beta", small)
        known = folder / "known_hosts"
        known.write_text("".join(f"{m.name} {key_of(folder, m.name)}" for m in machines.values()))
        common = "  User root\n  IdentitiesOnly yes\n"
        mine, strict = f"  IdentityFile {folder}/me\n", "  StrictHostKeyChecking yes\n"
        at = f"  HostName {machines['alpha'].address}\n"
        rows = {
            m.name: f"  HostName {m.address}\n  HostKeyAlias {m.name}\n{mine}"
            for m in machines.values()
        }
        rows |= {
            "closed": f"{at}  HostKeyAlias alpha\n  IdentityFile {folder}/nobody\n",
            "stranger": f"{at}  HostKeyAlias stranger\n{mine}",
            "down": f"{at}  Port 2\n{mine}",
            "nowhere": f"  HostName nowhere.invalid\n{mine}",
        }
        (folder / "config").write_text(
            "".join(
                f"Host {name}\n{row}{common}{strict}  UserKnownHostsFile {known}\n"
                for name, row in rows.items()
            )
        )
        os.environ["RELU_OPS_SSH"] = f"ssh -F {folder / 'config'}"
        for machine in machines.values():
            wait_for(lambda m=machine: ssh_to(m.name))  # type: ignore[misc]
        yield machines
    finally:
        os.environ.pop("RELU_OPS_SSH", None)
        for machine in machines.values():
            stop(machine)


def key_of(folder: Path, name: str) -> str:
    return (folder / f"{name}_key.pub").read_text()


def ssh_to(name: str) -> bool:
    command = [*os.environ["RELU_OPS_SSH"].split(), "-oBatchMode=yes", name, "true"]
    return subprocess.run(command, capture_output=True).returncode == 0


def wait_for(what: Callable[[], object], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.05)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bundle") / "leaky"
    compiler.build(graphs.leaky_relu(alpha=0.5), targets.runnable(), path)
    return path


def command(*arguments: object) -> list[str]:
    """A command line; this Python is that of the hosts too."""
    words = [str(argument) for argument in arguments]
    python = ["--python", sys.executable] if "--on" in words else []
    return [sys.executable, "-m", "relu_ops", *words, *python]


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(*arguments), capture_output=True, text=True, timeout=300)


def test_every_bit_on_another_machine(network: dict[str, Machine], bundle: Path) -> None:
    done = run("verify", bundle, "--on", "alpha", "--on", "beta", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    for host, report in json.loads(done.stdout).items():
        assert report["host"] == host and report["ok"]
        assert {row["target"] for row in report["rows"]} == set(targets.runnable())
        assert {"NumPy reference", "onnxruntime"} <= {row["referee"] for row in report["rows"]}


def test_two_machines_side_by_side(
    network: dict[str, Machine], bundle: Path, tmp_path: Path
) -> None:
    done = run(
        *("bench", bundle, *FEW, "--on", "alpha", "--on", "beta"),
        *("--record", tmp_path / "r.json", "--plot", tmp_path / "p"),
    )
    assert done.returncode == 0, done.stderr
    alpha, beta = (record.read(tmp_path / f"r-{name}.json") for name in ("alpha", "beta"))
    assert [found.machine["host"] for found in (alpha, beta)] == ["alpha", "beta"]
    assert alpha.machine["affinity"] == sorted(os.sched_getaffinity(0))
    assert beta.machine["affinity"] == [min(os.sched_getaffinity(0))]
    assert beta.settings["threads"] == 1
    assert beta.machine["usable_memory_bytes"] <= ADDRESSES
    timed = [t for found in (alpha, beta) for t in found.timings if not t.is_limit]
    assert {t.verified for t in timed} == {record.BIT_FOR_BIT} and len(timed) == 8
    last = done.stdout.splitlines()[-1]
    assert last == "verified against the NumPy reference on each machine: 8 of 8 equal it"
    assert (tmp_path / "p" / "machines_warm.png").is_file()
    compared = run("bench", "--compare", tmp_path / "r-alpha.json", tmp_path / "r-beta.json")
    assert done.stdout.endswith(compared.stdout)


def test_a_machine_with_too_little_memory(network: dict[str, Machine], bundle: Path) -> None:
    done = run("bench", bundle, "--size", "1024M", "--peer", "relu_ops", "--on", "beta")
    assert (done.returncode, done.stdout) == (2, "")
    assert "relu-ops: there is not enough memory: beta: MemoryError: " in done.stderr


@pytest.mark.parametrize(
    ("host", "message"),
    [
        ("closed", "closed: ssh was refused: root@198.18."),
        ("stranger", "stranger: ssh does not know its key: Host key verification failed."),
        ("down", "down: cannot be reached: ssh: connect to host 198.18."),
        ("nowhere", "nowhere: cannot be reached: ssh: Could not resolve hostname nowhere.invalid"),
    ],
)
def test_what_ssh_refuses(
    network: dict[str, Machine], bundle: Path, host: str, message: str
) -> None:
    done = run("verify", bundle, "--on", host)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"relu-ops: {message}") and "\nhint: " in done.stderr


def begun(network: dict[str, Machine], bundle: Path) -> subprocess.Popen[str]:
    """A benchmark that takes long, and is at work on alpha."""
    sizes = [text for k in range(200) for text in ("--size", str(100_000 + k))]
    words = command("bench", bundle, *sizes, "--peer", "relu_ops", "--on", "alpha")
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    wait_for(lambda: at_work(network["alpha"]))
    return process


def at_work(machine: Machine) -> bool:
    for pid in machine.processes():
        try:
            if "_limit.so" in Path(f"/proc/{pid}/maps").read_text():
                return True
        except OSError:
            continue
    return False


def test_a_server_that_ends_the_connection(network: dict[str, Machine], bundle: Path) -> None:
    alpha = network["alpha"]
    process = begun(network, bundle)
    for pid in alpha.processes():
        if Path(f"/proc/{pid}/comm").read_text().startswith("sshd"):
            os.kill(pid, signal.SIGKILL)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (cli.UNUSABLE, "")
    *_, message, hint = err.splitlines()
    assert message.startswith("relu-ops: alpha: the connection was lost while it was to measure: ")
    assert hint == "hint: run it again; nothing was left there"
    wait_for(lambda: not alpha.processes())


@pytest.mark.parametrize("kind", [signal.SIGINT, signal.SIGKILL])
def test_nothing_is_left_when_it_is_stopped(
    network: dict[str, Machine], bundle: Path, kind: signal.Signals
) -> None:
    process = begun(network, bundle)
    process.send_signal(kind)
    _, err = process.communicate(timeout=60)
    if kind == signal.SIGINT:
        assert (process.returncode, err.splitlines()[-1]) == (130, "relu-ops: interrupted")
    wait_for(lambda: not network["alpha"].processes())


@pytest.mark.exhaustive
def test_a_cable_that_is_pulled(network: dict[str, Machine], bundle: Path) -> None:
    """Nobody says that anything is lost: ssh asks, and hears nothing three times."""
    process = begun(network, bundle)
    link = network["alpha"].link
    ip("link", "set", link, "down")
    try:
        _, err = process.communicate(timeout=120)
    finally:
        ip("link", "set", link, "up")
    assert process.returncode == cli.UNUSABLE
    assert "alpha: the connection was lost while it was to measure: " in err
