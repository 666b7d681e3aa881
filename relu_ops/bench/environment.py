"""What a benchmark ran on and with: read, never guessed. What cannot be read is None."""

from __future__ import annotations

import os
import platform
import re
import resource
import subprocess
import time
from pathlib import Path
from typing import Any

from relu_ops import targets
from relu_ops._version import __version__, installed_version
from relu_ops.bench import peers
from relu_ops.errors import counted
from relu_ops.runtime import threads

_CPU = Path("/sys/devices/system/cpu")
_MEMORY_LIMITS = {
    "": ("/sys/fs/cgroup", "memory.max"),
    "memory": ("/sys/fs/cgroup/memory", "memory.limit_in_bytes"),
}
"""Where cgroups say how much memory they may have, in the second version and in the first."""
_USUAL_CACHE_BYTES = 32 * 2**20


def machine() -> dict[str, Any]:
    """The machine and what this process may use of it."""
    probed, flags = targets.this_machine(), _flags()
    return {
        "host": platform.node(),
        "cpu": probed.cpu,
        "architecture": probed.architecture,
        "flags": flags,
        "levels": list(targets.runnable(probed)),
        "caches": _caches(),
        "processors": os.cpu_count(),
        "affinity": sorted(os.sched_getaffinity(0)),
        "cgroup_cpu_max": _text("/sys/fs/cgroup/cpu.max"),
        "cgroup_memory_max": _text("/sys/fs/cgroup/memory.max"),
        "default_threads": threads.default_settings().threads,
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "usable_memory_bytes": usable_memory_bytes(),
        "huge_pages": _text("/sys/kernel/mm/transparent_hugepage/enabled"),
        "governor": _text(_CPU / "cpu0/cpufreq/scaling_governor"),
        "kernel": f"{platform.system()} {platform.release()}",
        "libc": " ".join(platform.libc_ver()),
        "hypervisor": None if flags is None else "hypervisor" in flags,
        "cuda": _cuda_devices(),
    }


def said(threads: int) -> str:
    """The machine and relu_ops in a few words, for a row that stands by itself."""
    return f"{targets.this_machine().cpu}, {counted(threads, 'thread')}, relu_ops {__version__}"


def usable_memory_bytes() -> int:
    """The memory that this process may use: the machine's, its cgroups', its own limit."""
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    own, _ = resource.getrlimit(resource.RLIMIT_AS)
    limits += [own] if own != resource.RLIM_INFINITY else []
    for line in (_text("/proc/self/cgroup") or "").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers in ("", "memory"):
            folder, name = _MEMORY_LIMITS[controllers]
            group = Path(path.lstrip("/"))
            texts = [_text(Path(folder) / one / name) or "" for one in (group, *group.parents)]
            limits += [int(text) for text in texts if text.isdecimal()]
    return min(limits)


def software() -> dict[str, Any]:
    """Versions of everything that takes part, and the commit of this source tree."""
    packages = {p.package: installed_version(p.package) for p in peers.PEERS.values() if not p.ours}
    packages["apache-tvm-ffi"] = installed_version("apache-tvm-ffi")
    return {
        "relu_ops": __version__,
        "python": platform.python_version(),
        "packages": {name: version for name, version in sorted(packages.items()) if version},
        **_commit(),
    }


class Usage:
    """How much of the processors others used, since this was made.

    A record says so about itself: what was measured beside a busy neighbour is worth little.
    """

    def __init__(self) -> None:
        self._busy, self._own, self._time = _busy_seconds(), _own_seconds(), time.monotonic()

    def share_of_others(self) -> float | None:
        """Of all processors' time, the part that other processes and other guests had."""
        busy = _busy_seconds()
        if busy is None or self._busy is None:
            return None
        elapsed = (time.monotonic() - self._time) * (os.cpu_count() or 1)
        others = (busy - self._busy) - (_own_seconds() - self._own)
        return round(max(others, 0.0) / max(elapsed, 1e-3), 3)


def _busy_seconds() -> float | None:
    """Seconds that the processors were not idle, stolen ones among them; see proc(5)."""
    fields = (_text("/proc/stat") or "").partition("\n")[0].split()
    if len(fields) < 9:
        return None
    user, nice, system, _idle, _wait, *interrupts_and_stolen = map(int, fields[1:9])
    ticks = user + nice + system + sum(interrupts_and_stolen)
    return ticks / os.sysconf("SC_CLK_TCK")


def _own_seconds() -> float:
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def _text(path: str | Path) -> str | None:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return None


def _flags() -> list[str] | None:
    """Every flag of the first processor: more than a target requires."""
    match = re.search(r"^flags\s*:(.*)$", _text("/proc/cpuinfo") or "", re.MULTILINE)
    return sorted(match[1].split()) if match else None


def last_level_cache_bytes() -> int:
    """The size of the largest cache of the first processor, or a usual one."""
    sizes = [re.fullmatch(r"(\d+)([KMG])", cache["size"] or "") for cache in _caches()]
    units = {"K": 10, "M": 20, "G": 30}
    return max((int(m[1]) << units[m[2]] for m in sizes if m), default=_USUAL_CACHE_BYTES)


def _caches() -> list[dict[str, Any]]:
    found = []
    for folder in sorted((_CPU / "cpu0/cache").glob("index*")):
        read = {name: _text(folder / name) for name in ("level", "type", "size", "shared_cpu_list")}
        found.append(read)
    return found


def _cuda_devices() -> list[str]:
    """The names of CUDA devices, where torch is installed and sees any."""
    if peers.why_not(peers.PEERS["torch_cuda"]) is not None:
        return []
    import torch

    if not torch.cuda.is_available():
        return []
    return [torch.cuda.get_device_name(k) for k in range(torch.cuda.device_count())]


def _commit() -> dict[str, Any]:
    """The commit and whether the tree differs from it; None outside a repository."""
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():
        return {"commit": None, "dirty": None}
    head = _git(root, "rev-parse", "HEAD")
    changes = _git(root, "status", "--porcelain", "--", "relu_ops")
    return {"commit": head, "dirty": None if changes is None else bool(changes)}


def commit() -> str:
    """The same as a text; "" outside a repository."""
    found = _commit()
    return f"{found['commit'] or ''}{', changed' if found['dirty'] else ''}"


def _git(root: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(root), *arguments], capture_output=True, text=True, timeout=30
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
