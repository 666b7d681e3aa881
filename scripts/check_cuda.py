"""Checks and times CUDA operators on the device at hand: bit by bit, then against torch.

Two commands. Where there is a compiler (no device needed):

    python scripts/check_cuda.py build FOLDER

and, with FOLDER and this file copied there, where there is a device (NumPy, apache-tvm-ffi and
torch are all that is needed; relu_ops itself is not):

    python check_cuda.py run FOLDER

It prints a line for each check and a verdict, and writes FOLDER/record.json, anew after every step:
what fails or hangs later takes nothing of it away. The steps that tell most come first; what does
not fit into --seconds is left out, and said to be. Exit code 0: every bit was right and every bar
was met; 1: not, or not all of it was seen; 2: nothing could be run. With --quick, samples. With
--simulated, libraries whose device is the CPU: to try this script itself.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import hashlib
import json
import os
import platform
import statistics
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

ALPHA = 0.1
GRAPHS = {
    **{f"relu_{d}": ("relu", {"dtype": d}) for d in ("float32", "float16", "bfloat16", "int8")},
    **{
        f"leaky_relu_{d}": ("leaky_relu", {"dtype": d, "alpha": ALPHA})
        for d in ("float32", "float16", "bfloat16")
    },
    "add_relu": ("add_relu", {}),
    "scale_bias_leaky_relu": ("scale_bias_leaky_relu", {"alpha": ALPHA}),
}
"""What is checked: a graph of relu_ops.graphs and its arguments."""

# Bars, from the issue that asked for this target.
LEAST_SHARE_OF_COPY = 0.95
LARGE_BYTES = 64 * 2**20
LEAST_FUSED_SPEEDUP = 2.0
# What two runs of one kernel differ by: "not slower" is meant beyond it.
NOISE = 1.03
# An idle device takes a while to raise its clock.
WARM_UP_SECONDS = 0.5


def build(folder: Path) -> int:
    """Build every bundle of `GRAPHS`. Needs relu_ops[cuda]."""
    import relu_ops
    from relu_ops import graphs

    for name, (graph, arguments) in GRAPHS.items():
        path = folder / f"{name}.bundle"
        digest = relu_ops.build(getattr(graphs, graph)(**arguments), ["cuda"], path)
        print(f"{path}: {digest}")
    return 0


# ---------------------------------------------------------------------------------------------
# The reference: NumPy on the CPU, one rounding per operator


def rounded_bfloat16(x: np.ndarray) -> np.ndarray:
    """float64 values rounded once to bfloat16, as bits."""
    exponent = np.frexp(np.where(np.isfinite(x), x, 0))[1] - 1
    quantum = np.ldexp(1.0, np.maximum(exponent, -126) - 7)
    return (np.rint(x / quantum) * quantum).astype(np.float32).view(np.uint32) >> 16


def reference(name: str, bits: np.ndarray) -> np.ndarray:
    """The bits that relu or leaky_relu must give for the bits of its input."""
    with np.errstate(all="ignore"):
        if name.endswith("bfloat16"):
            x = (bits.astype(np.uint32) << 16).view(np.float32)
            alpha = (rounded_bfloat16(np.float64([np.float32(ALPHA)])) << 16).view(np.float32)
            product = rounded_bfloat16(x.astype(np.float64) * np.float64(alpha))
        else:
            x = bits.view(name.rpartition("_")[2])
            alpha = np.asarray(np.float32(ALPHA)).astype(x.dtype)
            wide = np.float32 if x.dtype == np.float16 else x.dtype
            product = (x.astype(wide) * alpha.astype(wide)).astype(x.dtype).view(bits.dtype)
        below = np.zeros((), bits.dtype) if name.startswith("relu") else product.astype(bits.dtype)
        return np.where(x < 0, below, bits)


def differing(got: np.ndarray, wanted: np.ndarray, name: str) -> int:
    """How many bit patterns differ, NaN aside where both are."""
    wrong = got != wanted
    if not wrong.any():
        return 0
    exponent = {"float16": 0x7C00, "bfloat16": 0x7F80, "float32": 0x7F800000}.get(
        name.rpartition("_")[2], 0
    )
    if exponent:
        magnitude = exponent | ((exponent & -exponent) - 1)
        wrong &= ~(((got & magnitude) > exponent) & ((wanted & magnitude) > exponent))
    return int(wrong.sum())


# ---------------------------------------------------------------------------------------------
# Operators


class Library:
    """A bundle's library for the device, called with tensors."""

    def __init__(self, bundle: Path, number: int, simulated: bool) -> None:
        import tvm_ffi

        manifest = json.loads((bundle / "manifest.json").read_text())
        (entry,) = [f for f in manifest["files"] if f["target"] is not None]
        path = bundle / entry["path"]
        self.sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
        if self.sha256 != entry["sha256"]:
            raise SystemExit(f"{path}: is not what its manifest says")
        self.requires = entry["requires"]
        module = tvm_ffi.load_module(str(path))
        self.call, self.bind = module["call"], module["bind"]
        if not simulated:
            lookup = ctypes.cast(ctypes.CDLL(None).dlsym, ctypes.c_void_p).value
            module["prepare"](number, lookup, ctypes.CDLL("libcuda.so.1")._handle)


class Check:
    """What is checked with, and what came of it."""

    def __init__(self, options: argparse.Namespace) -> None:
        import torch

        self.torch = torch
        self.folder, self.quick, self.simulated = options.folder, options.quick, options.simulated
        self.device = "cpu" if options.simulated else f"cuda:{options.device}"
        self.deadline = time.monotonic() + options.seconds
        self.libraries: dict[str, Library] = {}
        self.results: list[dict[str, Any]] = []
        self.times: list[dict[str, Any]] = []
        self.failures: list[str] = []
        self.left_out: list[str] = []
        if not options.simulated:
            torch.cuda.set_device(options.device)  # events and graphs are the current device's
        for name in GRAPHS:
            bundle = options.folder / f"{name}.bundle"
            if bundle.is_dir():
                with self.kept(f"loading {name}"):
                    self.libraries[name] = Library(bundle, options.device, options.simulated)

    @contextlib.contextmanager
    def kept(self, what: str) -> Iterator[None]:
        """Keep and print what a step raises: the next one may still tell something."""
        try:
            yield
        except Exception as error:
            self.failures.append(f"{what}: {type(error).__name__}: {error}")
            print(f"FAILED {what}", flush=True)
            traceback.print_exc()

    def has_time(self, what: str) -> bool:
        """Whether there is time for more of something; if not, that it is left out."""
        if time.monotonic() < self.deadline:
            return True
        if what not in self.left_out:
            self.left_out.append(what)
            print(f"no time for {what}", flush=True)
        return False

    def note(self, name: str, compared: int, wrong: int, said: str = "") -> None:
        """Keep and print one result."""
        self.results.append({"check": name, "compared": compared, "wrong": wrong, "said": said})
        verdict = "ok" if wrong == 0 and (compared or said) else "WRONG"
        print(f"{verdict:<6}{name}: {compared:,} compared, {wrong:,} wrong {said}", flush=True)

    def empty(self, count: int, dtype: str) -> Any:
        """A tensor that holds `count` elements, as its dtype."""
        return self.torch.empty(count, dtype=getattr(self.torch, dtype), device=self.device)

    def bits(self, tensor: Any) -> np.ndarray:
        """The bits of a tensor."""
        size = tensor.element_size()
        raw = tensor.contiguous().view(getattr(self.torch, f"int{8 * size}")).cpu().numpy()
        return raw.view(f"u{size}")

    def put(self, bits: np.ndarray, dtype: str, offset: int = 0) -> Any:
        """Bits as a tensor on the device, `offset` elements into its memory."""
        held = self.empty(bits.size + offset, dtype)[offset:]
        raw = held.view(getattr(self.torch, f"int{8 * bits.itemsize}"))
        raw.copy_(self.torch.from_numpy(bits.view(f"i{bits.itemsize}")))
        return held

    def agree(self, name: str, x: Any, y: Any) -> tuple[int, int]:
        """How many elements of y were compared with the reference for x, and are wrong."""
        bits = self.bits(x).reshape(-1)
        return bits.size, differing(self.bits(y).reshape(-1), reference(name, bits), name)


# ---------------------------------------------------------------------------------------------
# Bits


def unary(check: Check) -> Iterator[tuple[str, str, Library]]:
    """Each graph of one input, with its dtype."""
    for name, library in check.libraries.items():
        if name.startswith(("relu_", "leaky_relu_")):
            yield name, name.rpartition("_")[2], library


def short_patterns(check: Check) -> None:
    """All bit patterns of 8 and 16 bits."""
    for name, dtype, library in unary(check):
        width = 8 * check.empty(1, dtype).element_size()
        if width < 32:
            some_patterns(check, name, dtype, library, [0], 1 << width)


def long_patterns(check: Check) -> None:
    """All bit patterns of 32 bits."""
    chunk = 1 << (20 if check.quick else 26)
    for name, dtype, library in unary(check):
        if dtype == "float32":
            starts = range(0, 1 << 32, chunk * (509 if check.quick else 1))
            some_patterns(check, name, dtype, library, starts, chunk)


def some_patterns(
    check: Check, name: str, dtype: str, library: Library, starts: Sequence[int], chunk: int
) -> None:
    """The bit patterns from each start on."""
    unsigned = f"u{check.empty(1, dtype).element_size()}"
    first, bits = np.arange(chunk).astype(unsigned), np.empty(chunk, unsigned)
    compared = wrong = 0
    for start in starts:
        if not check.has_time(f"{name}, bit patterns from {start:#x}"):
            break
        x = check.put(np.add(first, np.array(start, unsigned), out=bits), dtype)
        y = check.torch.full_like(x, 42)
        library.call(x, y)
        wrong += differing(check.bits(y), reference(name, bits), name)
        compared += chunk
    check.note(f"{name}, bit patterns", compared, wrong)


def sizes_and_offsets(check: Check) -> None:
    """Every size around a chunk and a tile at every offset, with nothing written beside."""
    sizes = [*range(70), 127, 128, 129, 255, 256, 257, 1023, 1024, 1025, 4095, 4096, 4097, 65537]
    sizes += [] if check.quick else [262_143, 262_145, 1_048_577, 16_777_219]
    rng = np.random.default_rng(0)
    for name, dtype, library in unary(check):
        itemsize = check.empty(1, dtype).element_size()
        compared = wrong = touched = 0
        for size in sizes:
            bits = rng.integers(0, 1 << (8 * itemsize), size, np.uint64).astype(f"u{itemsize}")
            for offset in range(17 if size < 70 else 3):
                x = check.put(bits, dtype, offset)
                memory = check.put(np.full(size + 40, 0x5A, f"u{itemsize}"), dtype)
                at = 16 + (offset if offset % 2 else 0)
                library.call(x, memory[at : at + size])
                more, bad = check.agree(name, x, memory[at : at + size])
                beside = np.delete(check.bits(memory), slice(at, at + size))
                compared, wrong = compared + more, wrong + bad
                touched += int((beside != 0x5A).sum())
                library.call(x, x)  # in place
                wrong += differing(check.bits(x), reference(name, bits), name)
        check.note(f"{name}, sizes and offsets", compared, wrong + touched)


def broadcasts(check: Check) -> None:
    """Rows, columns, planes, transposes, more of them than a grid has; against NumPy."""
    rng = np.random.default_rng(1)
    shapes: list[tuple[tuple[int, ...], ...]] = [
        *(((rows, n), (n,)) for rows in (1, 3, 1000) for n in (1, 3, 4, 127, 128, 129, 512, 4097)),
        *[((300, 1), (1, 1100)), ((7, 16, 64), (16, 1)), ((2, 3, 2, 3, 2, 3), (2, 1, 2, 1, 2, 1))],
        *[((66_000, 2, 3), (1, 2, 1)), ((131_100, 1), (1, 300))],
    ]
    compared = wrong = 0
    library = check.libraries["add_relu"]
    for pair in shapes:
        a, b = (rng.normal(size=s).astype(np.float32) for s in pair)
        for order in (False, True):  # also with every dimension reversed
            p, q = (
                check.put(v.view(np.uint32).reshape(-1), "float32").view(v.shape) for v in (a, b)
            )
            total = a + b
            if order and a.ndim == b.ndim:
                p, q, total = (
                    p.permute(*range(a.ndim)[::-1]),
                    q.permute(*range(b.ndim)[::-1]),
                    total.T,
                )
            y = check.torch.empty(total.shape, device=check.device)
            library.call(p, q, y)
            wanted = np.where(total < 0, np.float32(0), total)
            got = check.bits(y).reshape(-1)
            compared += wanted.size
            wrong += differing(
                got, np.ascontiguousarray(wanted).view(np.uint32).reshape(-1), "_float32"
            )
    check.note("add_relu, broadcasts", compared, wrong)
    fused(check, rng)


def fused(check: Check, rng: np.random.Generator) -> None:
    """A product, a sum and a slope: three roundings, none of them joined."""
    compared = wrong = 0
    library = check.libraries["scale_bias_leaky_relu"]
    for rows, n in ((1, 1), (3, 5), (1000, 512), (777, 513), (3, 70_001)):
        x, scale, bias = (rng.normal(size=s).astype(np.float32) for s in ((rows, n), n, n))
        tensors = [
            check.put(v.view(np.uint32).reshape(-1), "float32").view(v.shape)
            for v in (x, scale, bias)
        ]
        y = check.torch.empty((rows, n), device=check.device)
        library.call(*tensors, y)
        total = x * scale + bias
        wanted = np.where(total < 0, np.float32(ALPHA) * total, total)
        compared += wanted.size
        wrong += differing(
            check.bits(y).reshape(-1), wanted.view(np.uint32).reshape(-1), "_float32"
        )
    check.note("scale_bias_leaky_relu, rows", compared, wrong)


def past_32_bits(check: Check) -> None:
    """More than 2^31 and 2^32 elements, against torch on the device."""
    torch = check.torch
    for name, dtype, counts in (
        ("relu_int8", "int8", (2**31 - 1, 2**31 + 17, 2**32 + 33)),
        ("relu_float32", "float32", (2**31 + 5,)),
    ):
        for count in counts:
            free = torch.cuda.mem_get_info(check.device)[0]
            if 4 * count * check.empty(1, dtype).element_size() > free:
                check.note(f"{name}, {count:,} elements", 0, 0, "skipped: too little memory")
                continue
            x = torch.randint(-100, 100, (count,), dtype=torch.int8, device=check.device)
            x = x if dtype == "int8" else x.to(torch.float32)
            y = torch.full_like(x, 77)
            check.libraries[name].call(x, y)
            wrong = sum(
                int((y[at : at + 2**28] != x[at : at + 2**28].clamp_min(0)).sum())
                for at in range(0, count, 2**28)
            )
            check.note(f"{name}, {count:,} elements", count, wrong)
            del x, y


# ---------------------------------------------------------------------------------------------
# Streams, graphs, threads


def first_calls(check: Check) -> None:
    """The very first calls of a library, of each of its kernels, in the capture of a graph."""
    torch, name = check.torch, "relu_bfloat16"
    bits = np.random.default_rng(4).integers(0, 2**16, 1 << 16, np.uint64).astype(np.uint16)
    source = check.put(bits, "bfloat16")
    x, y, z = (torch.zeros_like(source) for _ in range(3))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        check.libraries[name].call(x, y)
        check.libraries[name].call(x[::2], z[::2])
    x.copy_(source)
    graph.replay()
    torch.cuda.synchronize()
    check.note("first calls, captured", *check.agree(name, x, y))
    check.note("first calls of any strides, captured", *check.agree(name, x[::2], z[::2]))
    untouched = check.bits(z[1::2])
    check.note("and nothing between them", untouched.size, int(untouched.any()))


def streams(check: Check) -> None:
    """A call waits for what its stream does first, and is captured by a graph."""
    torch, library = check.torch, check.libraries["leaky_relu_float32"]
    bits = np.random.default_rng(2).integers(0, 2**32, 1 << 20, np.uint64).astype(np.uint32)
    source = check.put(bits, "float32")
    x, y = torch.zeros_like(source), torch.zeros_like(source)
    torch.cuda.synchronize()
    side = torch.cuda.Stream(check.device)
    with torch.cuda.stream(side):
        torch.cuda._sleep(200_000_000)
        x.copy_(source)
        library.call(x, y)
    side.synchronize()
    check.note("a side stream", *check.agree("leaky_relu_float32", x, y))
    graph = torch.cuda.CUDAGraph()
    x.zero_()
    y.zero_()
    with torch.cuda.graph(graph):
        library.call(x, y)
    x.copy_(source)
    graph.replay()
    torch.cuda.synchronize()
    check.note("a captured graph", *check.agree("leaky_relu_float32", x, y))
    y.zero_()
    thread = threading.Thread(target=lambda: library.call(x, y))
    thread.start()
    thread.join()
    torch.cuda.synchronize()
    check.note("a thread of its own", *check.agree("leaky_relu_float32", x, y))
    if torch.cuda.device_count() > 1:
        there = [t.to("cuda:1") for t in (x, torch.zeros_like(y))]
        library.call(*there)
        check.note("a second device", *check.agree("leaky_relu_float32", *there))


def through_the_runtime(check: Check) -> None:
    """The same through relu_ops.load, where relu_ops is installed."""
    try:
        import relu_ops
    except ImportError as error:
        check.note("relu_ops.load", 0, 0, f"skipped: {error}")
        return
    torch = check.torch
    operator = relu_ops.load(check.folder / "leaky_relu_float32.bundle", device=check.device)
    bits = np.random.default_rng(3).integers(0, 2**32, 1 << 16, np.uint64).astype(np.uint32)
    x = check.put(bits, "float32")
    check.note("op(x)", *check.agree("leaky_relu_float32", x, operator(x)))
    strided = check.put(bits, "float32")[::2]
    check.note("op(strided)", *check.agree("leaky_relu_float32", strided, operator(strided)))
    side, y = torch.cuda.Stream(check.device), torch.zeros_like(x)
    torch.cuda.synchronize()
    call = operator.bind(x, out=y, stream=side)
    call()
    side.synchronize()
    check.note("op.bind(stream=)", *check.agree("leaky_relu_float32", x, y))
    for stream in (0, 1, 2, side.cuda_stream):  # none, legacy, of the thread, a handle
        what = f"op(x, stream={stream if stream < 3 else 'a handle'})"
        with check.kept(what):
            y = operator(x, stream=stream)
            torch.cuda.synchronize()
            check.note(what, *check.agree("leaky_relu_float32", x, y))
    y, graph = torch.zeros_like(x), torch.cuda.CUDAGraph()
    call = operator.bind(x, out=y)
    with torch.cuda.graph(graph):
        call()
        new = operator(x)
    graph.replay()
    torch.cuda.synchronize()
    check.note("op.bind(), captured", *check.agree("leaky_relu_float32", x, y))
    check.note("op(x), captured", *check.agree("leaky_relu_float32", x, new))
    refused = 0
    negated = torch.zeros(4, dtype=torch.complex64, device=check.device).conj().imag
    for bad in (x.cpu(), x.cpu().numpy(), x.double(), negated):
        try:
            operator(bad)
        except relu_ops.ReluOpsError:
            refused += 1
    try:
        operator(x[1:], out=x[:-1])
    except relu_ops.ReluOpsError:
        refused += 1
    check.note("refusals", 5, 5 - refused)
    small, out = x[:1024], torch.empty_like(x[:1024])
    bound, eager = operator.bind(small, out=out), torch.ops.aten.leaky_relu.out
    for what, run in (
        ("op(x, out=y)", lambda: operator(small, out=out)),
        ("op(x)", lambda: operator(small)),
        ("op.bind()", bound),
        ("torch", lambda: eager(small, ALPHA, out=out)),
    ):
        least = min(launched(check, run, 50) for _ in range(20))
        check.note(f"a launch of {what}", 0, 0, f"takes {least * 1e6:.2f} us")


def other_packages(check: Check) -> None:
    """Arrays of CuPy and JAX, where they and relu_ops are installed."""
    try:
        import relu_ops
    except ImportError as error:
        check.note("CuPy and JAX", 0, 0, f"skipped: {error}")
        return
    operator = relu_ops.load(check.folder / "leaky_relu_float32.bundle", device=check.device)
    bits = np.random.default_rng(5).integers(0, 2**32, 1 << 16, np.uint64).astype(np.uint32)
    for name, compute in (("CuPy", with_cupy), ("JAX", with_jax)):
        with check.kept(name):
            try:
                got = compute(operator, bits.view(np.float32))
            except ImportError as error:
                check.note(name, 0, 0, f"skipped: {error}")
                continue
            wrong = differing(
                got.view(np.uint32), reference("leaky_relu_float32", bits), "_float32"
            )
            check.note(name, bits.size, wrong)


def with_cupy(operator: Any, x: np.ndarray) -> np.ndarray:
    """On a stream of CuPy's that waits for no other."""
    import cupy

    with cupy.cuda.Device(int(operator.device.partition(":")[2])):
        with cupy.cuda.Stream(non_blocking=True) as stream:
            y = operator(cupy.asarray(x))
            stream.synchronize()
        return cupy.asnumpy(y)


def with_jax(operator: Any, x: np.ndarray) -> np.ndarray:
    """With what JAX computed, and read by JAX again."""
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # the others need memory, too
    import jax

    (device,) = [d for d in jax.local_devices() if str(d.local_hardware_id) == operator.device[5:]]
    y = operator(jax.device_put(x[::-1].copy(), device)[::-1])
    return np.asarray(jax.jit(lambda y: y[::-1])(y))[::-1].copy()


# ---------------------------------------------------------------------------------------------
# Time


def timed(check: Check, run: Callable[[], Any], repeats: int) -> float:
    """Seconds of one of several runs behind each other, on the device."""
    torch = check.torch
    start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(repeats):
        run()
    stop.record()
    stop.synchronize()
    return start.elapsed_time(stop) / 1e3 / repeats


def launched(check: Check, run: Callable[[], Any], repeats: int) -> float:
    """Seconds that the caller waits for a launch."""
    check.torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(repeats):
        run()
    seconds = (time.perf_counter() - start) / repeats
    check.torch.cuda.synchronize()
    return seconds


def contestants(check: Check, graph: str, count: int) -> tuple[dict[str, Callable[[], Any]], int]:
    """What is timed against each other on one size, and the bytes that each must move."""
    torch, alpha = check.torch, ALPHA
    dtype = torch.float16 if graph.endswith("float16") else torch.float32
    x = torch.randn(count, device=check.device).to(dtype).view(-1, min(count, 512))
    y, inputs = torch.empty_like(x), [x]
    leaky = torch.ops.aten.leaky_relu.out
    if graph.startswith("relu"):
        eager, plain = (lambda out, x: torch.clamp_min(x, 0, out=out)), torch.relu
    elif graph.startswith("leaky"):
        eager, plain = (
            lambda out, x: leaky(x, alpha, out=out),
            lambda x: torch.nn.functional.leaky_relu(x, alpha),
        )
    elif graph == "add_relu":
        inputs.append(torch.randn_like(x))
        eager, plain = (
            lambda out, x, b: torch.clamp_min(torch.add(x, b, out=out), 0, out=out),
            lambda x, b: torch.relu(x + b),
        )
    else:
        inputs += [torch.randn(x.shape[1], device=check.device) for _ in range(2)]
        eager, plain = (
            lambda out, x, s, b: leaky(x * s + b, alpha, out=out),
            lambda x, s, b: torch.nn.functional.leaky_relu(x * s + b, alpha),
        )
    library = check.libraries[graph]
    found: dict[str, Callable[[], Any]] = {
        "relu_ops": lambda: library.call(*inputs, y),
        "relu_ops bound": library.bind(*inputs, y),
        "torch eager": lambda: eager(y, *inputs),
        "copy": lambda: y.copy_(x),
    }
    if not check.quick:
        torch._dynamo.reset()  # it compiles one function for a few shapes at most
        compiled = torch.compile(plain, dynamic=False)
        try:
            compiled(*inputs)
            found["torch.compile"] = lambda: compiled(*inputs)
        except Exception as error:  # a missing compiler of torch's own, say
            print(f"      no torch.compile: {type(error).__name__}: {str(error)[:100]}")
    moved = sum(t.numel() * t.element_size() for t in [*inputs, y])
    return found, moved


def time_all(check: Check) -> None:
    """Every graph at every size."""
    counts = [2**10, 2**14, 2**18, 2**20, 2**22, 2**24, 2**26, 2**28]
    warm = check.torch.empty(2**26, device=check.device)
    until = time.monotonic() + WARM_UP_SECONDS
    while time.monotonic() < until:
        timed(check, lambda: warm.fill_(1), 10)
    for graph in (
        "relu_float32",
        "leaky_relu_float32",
        "relu_float16",
        "add_relu",
        "scale_bias_leaky_relu",
    ):
        for count in counts[::3] if check.quick else counts:
            if check.has_time(f"the times of {graph} of {count:,} elements"):
                with check.kept(f"timing {graph} of {count:,} elements"):
                    check.times += time_one(check, graph, count, count == counts[0])
                check.torch.cuda.empty_cache()


def time_one(check: Check, graph: str, count: int, launches_too: bool) -> list[dict[str, Any]]:
    """Interleaved rounds of every contestant at one size."""
    found, moved = contestants(check, graph, count)
    repeats = max(3, min(200, int(2e-3 / (moved / 3e12 + 3e-6))))
    samples: dict[str, list[float]] = {name: [] for name in found}
    launches: dict[str, list[float]] = {name: [] for name in found}
    for round_number in range(4 if check.quick else 14):
        for name, run in found.items():
            seconds = timed(check, run, repeats)
            launch = launched(check, run, 50) if launches_too else 0.0
            if round_number > 1:  # the first two warm up
                samples[name].append(seconds)
                launches[name].append(launch)
    rows = []
    for name in found:
        middle = statistics.median(samples[name])
        rows.append(
            {
                "graph": graph,
                "elements": count,
                "what": name,
                "seconds": samples[name],
                "median_seconds": middle,
                "launch_seconds": statistics.median(launches[name]),
                "bytes": moved if name != "copy" else 2 * found_bytes(graph, count),
            }
        )
        speed = rows[-1]["bytes"] / middle / 1e9
        print(f"      {graph:<24}{count:>12,} {name:<16}", end="")
        print(f"{middle * 1e6:>10.2f} us {speed:>7.0f} GB/s", flush=True)
    return rows


def found_bytes(graph: str, count: int) -> int:
    """Bytes of the output."""
    return count * (2 if graph.endswith("float16") else 4)


def bars(rows: Sequence[dict[str, Any]]) -> Iterator[tuple[str, bool]]:
    """Each bar and whether it was met."""
    table = {(r["graph"], r["elements"], r["what"]): r for r in rows}
    for (graph, count, what), row in table.items():
        if what != "relu_ops":
            continue
        copy, torch = (table[graph, count, peer] for peer in ("copy", "torch eager"))
        own = row["median_seconds"]
        if row["bytes"] >= LARGE_BYTES:
            share = row["bytes"] / own / (copy["bytes"] / copy["median_seconds"])
            yield f"{graph} {count:,}: {share:.3f} of a copy's speed", share >= LEAST_SHARE_OF_COPY
        fused_graph = graph.startswith(("add", "scale"))
        least = LEAST_FUSED_SPEEDUP if fused_graph and row["bytes"] >= LARGE_BYTES else 1 / NOISE
        if graph == "add_relu":
            least = min(least, 5 / 3 / NOISE)  # eager moves five arrays where one pass moves three
        speedup = torch["median_seconds"] / own
        yield f"{graph} {count:,}: {speedup:.2f} times torch's speed", speedup >= least
        if row["launch_seconds"]:
            ratio = row["launch_seconds"] / torch["launch_seconds"]
            yield f"{graph}: a launch takes {ratio:.2f} of torch's time", ratio <= NOISE


# ---------------------------------------------------------------------------------------------


def run(options: argparse.Namespace) -> int:
    """All checks, all times, the record and the verdict."""
    try:
        import torch
        import tvm_ffi
    except ImportError as error:
        print(f"cannot run: {error}")
        return 2
    if not options.simulated and not torch.cuda.is_available():
        print("cannot run: torch sees no CUDA device")
        return 2
    check = Check(options)
    if not check.libraries and not check.failures:
        print(f"cannot run: {options.folder} holds no bundle of {', '.join(GRAPHS)}")
        return 2
    record: dict[str, Any] = {
        "device": platform.processor() if options.simulated else torch.cuda.get_device_name(),
        "versions": {"torch": torch.__version__, "tvm_ffi": tvm_ffi.__version__},
        "numpy": np.__version__,
        "python": platform.python_version(),
        "cuda": torch.version.cuda,
        "driver": None if options.simulated else driver_version(),
        "libraries": {n: [lib.sha256, lib.requires] for n, lib in check.libraries.items()},
        "quick": options.quick,
    }
    print(json.dumps({k: v for k, v in record.items() if k != "libraries"}))
    for step in steps_of(options):
        what = (step.__doc__ or "").rstrip(".")
        if check.has_time(what):
            with check.kept(what):
                step(check)
        keep(check, record)
    return verdict(check, record)


def steps_of(options: argparse.Namespace) -> list[Callable[[Check], None]]:
    """What is checked, in the order in which it tells most in little time."""
    if options.simulated:
        return [short_patterns, sizes_and_offsets, broadcasts, long_patterns]
    return [
        *(first_calls, streams, short_patterns, sizes_and_offsets, broadcasts),
        *(through_the_runtime, past_32_bits),
        *([] if options.no_times else [time_all]),
        *(other_packages, long_patterns),
    ]


def driver_version() -> int:
    """The version of CUDA that the driver runs, as it says it: 13000 is 13.0."""
    version = ctypes.c_int()
    ctypes.CDLL("libcuda.so.1").cuDriverGetVersion(ctypes.byref(version))
    return version.value


def keep(check: Check, record: dict[str, Any]) -> None:
    """Write what is known so far."""
    record |= {
        "checks": check.results,
        "times": check.times,
        "bars": list(bars(check.times)),
        "failures": check.failures,
        "left_out": check.left_out,
        "exact": not check.failures
        and all(r["wrong"] == 0 for r in check.results)
        and any(r["compared"] for r in check.results),
    }
    path = check.folder / "record.json"
    path.with_suffix(".new").write_text(json.dumps(record, indent=1))
    path.with_suffix(".new").replace(path)


def verdict(check: Check, record: dict[str, Any]) -> int:
    """Print what came of it all, and give the exit code."""
    for said, fine in record["bars"]:
        print(f"{'ok' if fine else 'MISSED':<7}{said}")
    for failure in check.failures:
        print(f"FAILED {failure}")
    for what in check.left_out:
        print(f"NOT SEEN {what}")
    missed = sum(not fine for _, fine in record["bars"])
    print(
        f"verdict: bits {'right' if record['exact'] else 'WRONG'}; "
        f"{len(record['bars']) - missed} of {len(record['bars'])} bars met; "
        f"{len(check.failures)} failures, {len(check.left_out)} not seen"
    )
    return 0 if record["exact"] and not missed and not check.left_out else 1


def main() -> int:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("task", choices=("build", "run"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--device", type=int, default=0, help="number of the CUDA device")
    parser.add_argument("--quick", action="store_true", help="samples, in a minute or two")
    parser.add_argument("--no-times", action="store_true", help="bits alone")
    parser.add_argument("--seconds", type=float, default=500, help="begin nothing after so many")
    parser.add_argument("--simulated", action="store_true", help="libraries for the CPU")
    options = parser.parse_args()
    return build(options.folder) if options.task == "build" else run(options)


if __name__ == "__main__":
    sys.exit(main())
