"""The CUDA target without a device: what is built, what it needs, who is refused and why.

The arithmetic of its kernels is in test_cuda_simulated.py; what needs a device is marked `gpu`.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import simulated_cuda
from cases import SPECIALS, assert_same_bits
from onnx import helper, numpy_helper

import relu_ops
from relu_ops import bundle, compiler, graphs, reference, targets
from relu_ops.compiler import codegen_cuda, frontend, toolchain
from relu_ops.errors import (
    ArgumentError,
    ArgumentTypeError,
    BuildError,
    DeviceError,
    TargetError,
)
from relu_ops.runtime import cuda, dispatch, driver
from relu_ops.runtime.cuda import CudaOperator, View
from relu_ops.semantics import DTYPES
from relu_ops.targets import Gpu, Machine

H200 = Machine("x86_64", driver=(13, 0), gpus=(Gpu("NVIDIA H200", 90), Gpu("NVIDIA H200", 90)))


def _nvcc() -> bool:
    try:
        toolchain.nvcc()
    except BuildError:
        return False
    return True


needs_nvcc = pytest.mark.skipif(not _nvcc(), reason="there is no nvcc (relu_ops[cuda])")


def tool(name: str) -> str:
    """One of NVIDIA's disassemblers: beside nvcc in the wheels, or on PATH."""
    beside = toolchain.nvcc().path.with_name(name)
    found = str(beside) if beside.is_file() else shutil.which(name)
    if not found:
        pytest.skip(f"there is no {name} (relu_ops[test])")
    return found


# ---------------------------------------------------------------- what is built


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The libraries of graphs whose inner loops are looked at, for every architecture."""
    if not _nvcc():
        pytest.skip("there is no nvcc (relu_ops[cuda])")
    folder = tmp_path_factory.mktemp("cuda")
    made = {}
    for name, model in LOOKED_AT.items():
        _, contents = compiler.make(model, ["cuda"])
        made[name] = folder / f"{name}.so"
        made[name].write_bytes(contents["cuda.so"])
    return made


LOOKED_AT = {
    "relu": graphs.relu(),
    "leaky_relu": graphs.leaky_relu(alpha=0.1),
    "relu_float16": graphs.relu(dtype="float16"),
    "leaky_relu_float16": graphs.leaky_relu(alpha=0.1, dtype="float16"),
    "relu_int8": graphs.relu(dtype="int8"),
    "scale_bias_leaky_relu": graphs.scale_bias_leaky_relu(alpha=0.1),
    "relu_bfloat16": graphs.relu(dtype="bfloat16"),
    "leaky_relu_bfloat16": graphs.leaky_relu(alpha=0.1, dtype="bfloat16"),
    "leaky_relu_float64": graphs.leaky_relu(alpha=0.1, dtype="float64"),
}


def run_tool(name: str, *arguments: str) -> str:
    done = subprocess.run([tool(name), *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def sass_of(path: Path, sm: int) -> dict[str, str]:
    """The machine code of each kernel."""
    text = run_tool("cuobjdump", "-sass", "-arch", f"sm_{sm}", str(path))
    parts = re.split(r"Function : (\w+)", text)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def test_the_library_holds_every_architecture(built: dict[str, Path]) -> None:
    known = toolchain.nvcc().architectures()
    wanted = [sm for sm in codegen_cuda.ARCHITECTURES if sm in known]
    assert len(wanted) >= 7
    listed = run_tool("cuobjdump", "--list-elf", "--list-ptx", str(built["relu"]))
    assert re.findall(r"sm_(\d+)\.cubin", listed) == [str(sm) for sm in wanted]
    assert re.findall(r"sm_(\d+)\.ptx", listed) == [str(wanted[-1])]


@pytest.mark.parametrize("sm", codegen_cuda.ARCHITECTURES)
@pytest.mark.parametrize("name", LOOKED_AT)
def test_accesses_are_wide_and_several_are_in_flight(
    built: dict[str, Path], name: str, sm: int
) -> None:
    body = sass_of(built[name], sm)["tile_0"]
    wide = re.findall(r"\b(LDG|STG)\.E(?:\.ENL2)?\.(?:128|ENL2\.128)", body)
    before_first_store = "".join("S" if w == "STG" else "L" for w in wide)
    assert re.search("LLLL" if "scale" not in name else "LLLLLL", before_first_store), wide
    assert "STG" in wide
    # Nothing spilled, no array in slow memory.
    assert not re.search(r"\b(LDL|STL)\b", body)
    # sm_75 has no product of bfloat16: what stands for it branches, which divides the loads.
    if (name, sm) != ("leaky_relu_bfloat16", 75):
        assert used_early(body) == []


def used_early(sass: str) -> list[str]:
    """Instructions that wait for a wide load before the last of those before a store is issued."""
    lines = re.findall(r"^\s+/\*[0-9a-f]{4,}\*/\s+([^;]*);", sass, re.MULTILINE)
    stores = [k for k, line in enumerate(lines) if "STG.E" in line]
    loads = [k for k, line in enumerate(lines[: stores[0]]) if "LDG.E" in line]
    arriving: set[int] = set()
    early = []
    for line in lines[loads[0] : loads[-1] + 1]:
        loaded = re.search(r"LDG\.E\S* R([0-9]+)(?:, R([0-9]+))?, ", line)
        if loaded:
            for first in filter(None, loaded.groups()):
                arriving |= set(range(int(first), int(first) + 4))
        elif arriving & {int(number) for number in re.findall(r"\bR([0-9]+)\b", line)}:
            early.append(line)
    return early


def test_a_use_before_the_last_load_would_be_found() -> None:
    lines = ["LDG.E.128 R4, [R2]", "FADD R9, R6, R1", "LDG.E.128 R12, [R2]", "STG.E.128 [R2], R4"]
    sass = "".join(f"        /*{k:04x}*/   {line} ;\n" for k, line in enumerate(lines))
    assert used_early(sass) == ["FADD R9, R6, R1 "]
    assert used_early(sass.replace("R6", "R8")) == []


def inexact(sass: str) -> list[str]:
    """Fused multiply-adds and flushes; what only looks like one aside.

    An instruction that multiplies zeros is how a register is filled, and one that adds -0.0 is a
    product: of bfloat16, which has no other. F2I.FTZ belongs to the integer division that finds a
    plane, whose number is no subnormal.
    """
    lines = re.findall(r"\b(?:FFMA2?|DFMA|HFMA2)\b[^;]*;", sass)
    alike = re.compile(r"-?RZ(?:\.H0_H0)?, RZ|BF16.*, -RZ(?:\.H0_H0)? ;")
    fused = [line for line in lines if not alike.search(line)]
    return fused + re.findall(r"\b(?:FADD|FMUL|FSETP|FSEL|FMNMX|HADD2|HMUL2)[.\w]*\.FTZ", sass)


@pytest.mark.parametrize("sm", codegen_cuda.ARCHITECTURES)
@pytest.mark.parametrize("name", LOOKED_AT)
def test_nothing_is_contracted_or_flushed(built: dict[str, Path], name: str, sm: int) -> None:
    """None of these graphs divides; division and conversions have FMAs of their own, exact ones."""
    for body in sass_of(built[name], sm).values():
        assert not inexact(body)


@needs_nvcc
@pytest.mark.parametrize(("flag", "found"), [("-fmad=true", "FFMA"), ("-ftz=true", "FTZ")])
def test_a_contraction_or_a_flush_would_be_found(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, flag: str, found: str
) -> None:
    monkeypatch.setattr(codegen_cuda, "NVCC_FLAGS", ("-fatbin", "-std=c++17", "-O3", flag))
    _, contents = compiler.make(LOOKED_AT["scale_bias_leaky_relu"], ["cuda-sm_90"])
    (tmp_path / "fused.so").write_bytes(contents["cuda-sm_90.so"])
    text = " ".join(inexact(sass_of(tmp_path / "fused.so", 90)["tile_0"]))
    assert found in text


def test_ptx_has_no_contraction_and_no_flush(built: dict[str, Path]) -> None:
    for name, path in built.items():
        text = run_tool("cuobjdump", "-ptx", str(path))
        assert ".entry tile_0" in text, name
        assert not re.search(r"\bfma\.(?!rn\.bf16)|\bmad\.[a-z.]*f(16|32|64)|\.ftz", text), name
        assert re.search(r"ld\.global\.v[24]\.", text), name


def test_a_library_is_small_and_needs_the_c_library_alone(built: dict[str, Path]) -> None:
    for path in built.values():
        assert path.stat().st_size < 2**20
        dynamic = subprocess.run(["readelf", "-d", path], capture_output=True, text=True).stdout
        assert re.findall(r"NEEDED.*\[(.*)\]", dynamic) == ["libc.so.6"]


@needs_nvcc
def test_two_builds_give_the_same_bytes(tmp_path: Path) -> None:
    script = (
        "import relu_ops, sys\n"
        "print(relu_ops.build(relu_ops.graphs.relu(), ['cuda'], sys.argv[1]))\n"
    )
    digests = set()
    for seed in ("1", "2"):
        folder = tmp_path / f"somewhere-{seed * 7}"
        folder.mkdir()
        environment = {**os.environ, "PYTHONHASHSEED": seed, "TMPDIR": str(folder)}
        done = subprocess.run(
            [sys.executable, "-c", script, str(folder / "out")],
            env=environment,
            cwd=folder,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        digests.add(done.stdout)
    assert len(digests) == 1


@needs_nvcc
def test_one_architecture_alone(tmp_path: Path) -> None:
    relu_ops.build(graphs.relu(), ["x86-64-v2", "cuda-sm_90"], tmp_path / "b")
    held = bundle.read(tmp_path / "b")
    assert held.manifest.targets == ("x86-64-v2", "cuda-sm_90")
    requires = held.manifest.library("cuda-sm_90").requires
    assert (requires["sm"], requires["ptx"]) == ([90], None)
    assert requires["driver"] == requires["cuda"].partition(".")[0] + ".0"
    x = np.array([-1.0, 2.0], np.float32)
    assert relu_ops.load(tmp_path / "b")(x).tolist() == [0, 2]
    with pytest.raises(TargetError, match="cuda-sm_90"):
        relu_ops.load(tmp_path / "b", target="cuda-sm_90")


@needs_nvcc
def test_an_architecture_that_nvcc_does_not_know() -> None:
    with pytest.raises(BuildError, match=r"nvcc [0-9.]+ cannot compile for sm_61\nhint: it knows"):
        compiler.make(graphs.relu(), ["cuda-sm_61"])


def test_without_nvcc_the_error_says_what_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(toolchain, "places_of_nvcc", lambda: iter(()))
    with pytest.raises(BuildError) as caught:
        compiler.make(graphs.relu(), ["cuda"])
    assert caught.value.hint == "pip install 'relu_ops[cuda]'"


def test_nvcc_of_the_wheels_comes_before_cuda_home_and_path(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for place in ("site/nvidia/cu13/bin", "home/bin", "path"):
        (tmp_path / place).mkdir(parents=True)
        (tmp_path / place / "nvcc").write_text("#!/bin/sh\n")
        (tmp_path / place / "nvcc").chmod(0o755)
    monkeypatch.setattr(sys, "path", [str(tmp_path / "site")])
    monkeypatch.setattr(sys, "path_importer_cache", {})
    monkeypatch.delitem(sys.modules, "nvidia", raising=False)
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("PATH", str(tmp_path / "path"))
    found = [path.relative_to(tmp_path).as_posix() for path in toolchain.places_of_nvcc()]
    assert found == ["site/nvidia/cu13/bin/nvcc", "home/bin/nvcc", "path/nvcc"]


def test_constants_of_float64_keep_their_bits() -> None:
    """TVM writes them with 15 decimals."""
    tiny = np.array(-1e-20)
    graph = helper.make_graph(
        [helper.make_node("Mul", ["x", "c"], ["y"])],
        "tiny",
        [helper.make_tensor_value_info("x", 11, [None])],
        [helper.make_tensor_value_info("y", 11, [None])],
        [numpy_helper.from_array(tiny, "c")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    text = codegen_cuda.sources_cuda(frontend.import_model(model)).cuda
    assert f"__longlong_as_double((int64_t){tiny.view(np.int64)})" in text


# ---------------------------------------------------------------- who can run it

NEEDS = {"sm": [75, 80, 90], "ptx": 90, "cuda": "13.1", "driver": "13.0"}


@pytest.mark.parametrize(
    ("machine", "number", "reason"),
    [
        (H200, 0, None),
        (H200, 1, None),
        (H200, 2, "there is no device cuda:2 (there are 2)"),
        (Machine("x86_64", driver_problem="no file"), 0, "there is no CUDA driver (no file)"),
        (
            Machine("x86_64", driver=(12, 8), gpus=H200.gpus),
            0,
            "the driver runs CUDA 12.8 (it must run 13.0 or newer)",
        ),
        (Machine("x86_64", driver=(13, 0), gpus=(Gpu("A10", 86),)), 0, None),
        (
            Machine("x86_64", driver=(13, 2), gpus=(Gpu("P100", 61),)),
            0,
            "built for sm_75, sm_80, sm_90, compute_90; cuda:0 (P100) is sm_61",
        ),
        # PTX needs a driver as new as the compiler.
        (Machine("x86_64", driver=(13, 1), gpus=(Gpu("B200", 100),)), 0, None),
        (
            Machine("x86_64", driver=(13, 0), gpus=(Gpu("B200", 100),)),
            0,
            "built for sm_75, sm_80, sm_90, compute_90; cuda:0 (B200) is sm_100",
        ),
    ],
)
def test_why_not_on_gpu(machine: Machine, number: int, reason: str | None) -> None:
    assert targets.why_not_on_gpu(targets.parse("cuda"), NEEDS, machine, number) == reason


def test_the_closest_code_is_chosen() -> None:
    libraries = {
        "x86-64-v3": {"flags": []},
        "cuda": {**NEEDS, "sm": [75, 80], "ptx": 80},
        "cuda-sm_90": {**NEEDS, "sm": [90], "ptx": None},
    }
    a100 = Machine("x86_64", driver=(13, 1), gpus=(Gpu("A100", 80),))
    assert targets.choose_on_gpu(libraries, H200, 0).name == "cuda-sm_90"
    assert targets.choose_on_gpu(libraries, a100, 0).name == "cuda"
    with pytest.raises(TargetError) as caught:
        targets.choose_on_gpu(libraries, Machine("x86_64"), 0)
    assert caught.value.message == (
        "no variant can run on cuda:0:\n"
        "  x86-64-v3: it runs on the CPU (not on a GPU)\n"
        "  cuda: there is no CUDA driver (it was not looked for)\n"
        "  cuda-sm_90: there is no CUDA driver (it was not looked for)"
    )


@pytest.mark.parametrize("device", ["gpu", "cuda:", "cuda:-1", "cuda:100", "CUDA", None, 0])
def test_a_device_that_is_none(device: Any, tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match="device must be 'cpu', 'cuda' or 'cuda:N'"):
        relu_ops.load(tmp_path, device=device)


def test_without_a_driver_loading_says_so_and_importing_does_not(tmp_path: Path) -> None:
    if driver.machine().driver is not None:
        pytest.skip("there is a driver here")
    relu_ops.build(graphs.relu(), ["x86-64-v2"], tmp_path / "b")
    with pytest.raises(TargetError, match="x86-64-v2: it runs on the CPU"):
        relu_ops.load(tmp_path / "b", device="cuda")


# ---------------------------------------------------------------- calling it, on a simulated device


@dataclass
class Array:
    """What stands for a torch tensor: memory of the CPU's that is said to be on a device."""

    data: np.ndarray
    device: int | None = 0
    frozen: bool = False


class Simulated:
    """The kind of `Array`."""

    name = "simulated"
    current = 0

    def __init__(self) -> None:
        self.waited = 0

    def owns(self, x: Any) -> bool:
        return isinstance(x, Array)

    def view(self, x: Array) -> View:
        strides = tuple(s // x.data.itemsize for s in x.data.strides)
        address = x.data.ctypes.data
        return View(address, x.data.dtype.name, x.data.shape, strides, x.device)

    def why_not_written(self, x: Array) -> str | None:
        return "is frozen" if x.frozen else None

    def empty(self, shape: tuple[int, ...], dtype: str, device: int, stream: int | None) -> Array:
        return Array(np.empty(shape, DTYPES[dtype].numpy), device)

    def stream(self, device: int) -> int:
        return self.current

    def finish(self, wait: Any) -> None:
        self.waited += 1


class Other(Simulated):
    """Another kind, for mixing."""

    name = "other"

    def owns(self, x: Any) -> bool:
        return isinstance(x, OtherArray)


@dataclass
class OtherArray(Array):
    """An array of the other kind."""


def simulated_operator(monkeypatch: pytest.MonkeyPatch, model: Any) -> CudaOperator:
    def build(graph: Any, target: Any) -> tuple[bytes, dict[str, Any]]:
        return simulated_cuda.build(graph), dict(NEEDS)

    simulated_cuda.admit(monkeypatch)
    monkeypatch.setattr(codegen_cuda, "build_cuda", build)
    monkeypatch.setattr(driver, "machine", lambda: H200)
    monkeypatch.setattr(driver, "addresses", lambda: (0, 0))
    monkeypatch.setattr(cuda, "KINDS", (Other(), Simulated()))
    manifest, contents = compiler.make(model, ["cuda"])
    held = bundle.from_contents("<memory>", bundle.encode(manifest), contents)
    operator = dispatch.operator_of(held, number=0)
    assert isinstance(operator, CudaOperator)
    return operator


@pytest.fixture
def leaky(monkeypatch: pytest.MonkeyPatch) -> CudaOperator:
    return simulated_operator(monkeypatch, graphs.leaky_relu(alpha=0.1))


def test_arrays_of_one_kind_in_and_out(leaky: CudaOperator) -> None:
    x = Array(SPECIALS["float32"])
    graph = frontend.import_model(graphs.leaky_relu(alpha=0.1))
    (wanted,) = reference.evaluate(graph, [x.data])
    y = leaky(x)
    assert isinstance(y, Array)
    assert_same_bits(y.data, wanted, "allocated")
    out = Array(np.zeros_like(x.data))
    assert leaky(x, out=out, stream=7) is out
    assert_same_bits(out.data, wanted, "given")
    call = leaky.bind(x, out=out)
    out.data[...] = 0
    call()
    assert_same_bits(call.out.data, wanted, "bound")
    same = Array(x.data.copy())
    assert leaky(same, out=same) is same
    assert_same_bits(same.data, wanted, "in place")
    assert leaky.device == "cuda:0"
    assert "device=cuda:0" in repr(leaky)


def test_streams_are_followed(leaky: CudaOperator, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[str, int]] = []
    ffi: Any = cuda.tvm_ffi()
    real = ffi.use_raw_stream
    monkeypatch.setattr(
        ffi, "use_raw_stream", lambda d, s: (seen.append((str(d), s)), real(d, s))[1]
    )
    x, out = Array(np.ones(3, np.float32)), Array(np.ones(3, np.float32))
    monkeypatch.setattr(Simulated, "current", 5)
    leaky(x, out=out)
    leaky(x, out=out, stream=9)
    bound, fixed = leaky.bind(x, out=out), leaky.bind(x, out=out, stream=11)
    monkeypatch.setattr(Simulated, "current", 6)
    bound()
    fixed()
    assert seen == [("cuda:0", s) for s in (5, 9, 6, 11)]


def test_a_given_stream_orders_the_memory_of_a_new_output_even_if_it_is_the_default_one(
    leaky: CudaOperator, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int | None] = []

    def empty(self: Any, shape: Any, dtype: str, device: int, stream: int | None) -> Array:
        seen.append(stream)
        return Array(np.empty(shape, dtype))

    monkeypatch.setattr(Simulated, "empty", empty)
    monkeypatch.setattr(Simulated, "current", 5)
    for stream in (None, 0, 7):
        leaky(Array(F32), stream=stream)
    assert seen == [None, 0, 7]


class FakeTorch:
    """As much of torch as makes an output."""

    Tensor = type("Tensor", (), {})

    def __init__(self) -> None:
        self.entered: list[Any] = []
        self.float32 = "float32"
        self.cuda = self
        self._C = self

    @contextlib.contextmanager
    def stream(self, stream: Any) -> Iterator[None]:
        self.entered.append(stream)
        yield

    def default_stream(self, device: int) -> str:
        return f"default of {device}"

    def ExternalStream(self, handle: int, device: int) -> tuple[int, int]:
        assert handle not in (0, 1), "torch gives a new stream, or raises"
        return handle, device

    def empty(self, shape: Any, dtype: Any, device: str) -> Any:
        return shape, dtype, device


def test_torch_allocates_on_the_stream_that_was_given(monkeypatch: pytest.MonkeyPatch) -> None:
    torch = FakeTorch()
    monkeypatch.setitem(sys.modules, "torch", torch)  # type: ignore[arg-type]
    for stream in (None, 0, 1, 2, 99):
        made = cuda.Torch().empty((3,), "float32", 1, stream)
        assert made == ((3,), "float32", "cuda:1")
    assert torch.entered == ["default of 1", "default of 1", (2, 1), (99, 1)]


def test_a_new_output_of_another_dtype_is_not_written(
    leaky: CudaOperator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As JAX makes them of 64 bits, unless it was told to allow them."""
    monkeypatch.setattr(Simulated, "empty", lambda self, shape, *_: Array(np.empty(shape, np.int8)))
    with pytest.raises(
        ArgumentTypeError, match="simulated makes arrays of int8 where y must be float32"
    ):
        leaky(Array(F32))


@pytest.fixture
def with_torch(leaky: CudaOperator, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """torch, whose tensors in the CPU's memory the simulated library takes for the device's."""
    torch = pytest.importorskip("torch", reason="torch is not installed: relu_ops[torch]")
    monkeypatch.setattr(cuda, "KINDS", (cuda.Torch(),))
    cuda._plain_tensors.cache_clear()
    yield torch
    cuda._plain_tensors.cache_clear()


def test_plain_tensors_are_handed_over_as_they_are(leaky: CudaOperator, with_torch: Any) -> None:
    x = with_torch.tensor([1.0, -2.0])
    assert leaky(x).tolist() == [1.0, np.float32(0.1) * np.float32(-2)]
    assert leaky(with_torch.nn.Parameter(x), out=x) is x


def test_a_tensor_that_waits_for_its_negation_is_refused(
    leaky: CudaOperator, with_torch: Any
) -> None:
    """tvm-ffi reads what lies in memory, which is the opposite of its values."""
    x = with_torch.tensor([1 + 2j, 3 - 4j]).conj().imag
    assert x.is_neg()
    for inputs, out in ((x, None), (x, with_torch.zeros(2)), (with_torch.zeros(2), x)):
        # The careful path, which stops at the first tensor: none of these is on a device.
        with pytest.raises(ArgumentError, match=r"pending conjugation or negation|CPU's memory"):
            leaky(inputs, out=out)


def test_tensors_go_where_their_stream_is_known_if_tvm_ffi_does_not_ask_for_it(
    leaky: CudaOperator, with_torch: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TVM_FFI_SKIP_DLPACK_C_EXCHANGE_API", "1")
    with pytest.raises(ArgumentError, match="is in the CPU's memory"):
        leaky(with_torch.zeros(2))


class Stream:
    """A stream as CuPy and torch have them."""

    def __init__(self, **attributes: Any) -> None:
        vars(self).update(attributes)


class CudaStream:
    """A stream as the protocol has it."""

    def __cuda_stream__(self) -> tuple[int, int]:
        return 0, 44


@pytest.mark.parametrize(
    ("stream", "handle"),
    [(0, 0), (17, 17), (CudaStream(), 44), (Stream(cuda_stream=45), 45), (Stream(ptr=46), 46)],
)
def test_what_a_stream_may_be(stream: Any, handle: int) -> None:
    assert cuda.stream_handle(stream) == handle


@pytest.mark.parametrize("stream", ["0", 1.5, True, object()])
def test_what_a_stream_may_not_be(stream: Any) -> None:
    with pytest.raises(ArgumentTypeError, match="stream must be a handle or a stream"):
        cuda.stream_handle(stream)


F32 = np.ones(4, np.float32)
OVERLAP = np.ones(9, np.float32)


BETWEEN = np.frombuffer(bytes(18), np.uint8)[1:17].view(np.float32)
REFUSED: tuple[tuple[Any, Any, type[Exception], str], ...] = (
    (
        (F32,),
        None,
        ArgumentTypeError,
        r"x must be a torch, CuPy or JAX array on cuda:0 \(not a NumPy array\)\nhint: copy it",
    ),
    (([1.0],), None, ArgumentTypeError, r"\(not list\)\nhint: hand it over by DLPack"),
    ((Array(F32, None),), None, ArgumentError, "CPU's memory; this operator runs on cuda:0"),
    ((Array(np.ones(4)),), None, ArgumentTypeError, r"x.dtype must be float32 \(not float64\)"),
    ((Array(F32), Array(F32)), None, ArgumentTypeError, r"takes 1 input \(x\), not 2"),
    ((Array(F32),), F32, ArgumentTypeError, "y must be a torch"),
    ((Array(F32),), Array(F32[:3]), ArgumentError, r"y.shape must be \(4,\) \(not \(3,\)\)"),
    ((Array(F32),), Array(F32, frozen=True), ArgumentError, "out for y is frozen"),
    (
        (Array(F32),),
        Array(F32, 1),
        ArgumentError,
        "y is on cuda:1; x is on cuda:0: all arrays must be on one device",
    ),
    ((Array(F32),), OtherArray(F32), ArgumentError, "other and simulated have each a current"),
    (
        (Array(OVERLAP[:8]),),
        Array(OVERLAP[1:]),
        ArgumentError,
        "y overlaps another array\nhint: pass arrays that lie apart",
    ),
    ((Array(F32),), Array(np.broadcast_to(F32[:1], 4)), ArgumentError, "several elements in one"),
    ((Array(BETWEEN),), None, ArgumentError, "x: lies between the places"),
)


@pytest.mark.parametrize(("inputs", "out", "kind", "message"), REFUSED)
def test_what_is_refused(
    leaky: CudaOperator, inputs: Any, out: Any, kind: type[Exception], message: str
) -> None:
    with pytest.raises(kind, match=message):
        leaky(*inputs, out=out)


def test_nothing_is_written_to_where_there_are_no_elements(leaky: CudaOperator) -> None:
    out = Array(np.broadcast_to(F32[:0, None], (0, 4)))
    assert out.data.strides[1] == 0
    assert leaky(Array(F32[:0, None].repeat(4, 1)), out=out) is out


def test_pickle_keeps_the_device(leaky: CudaOperator) -> None:
    twin = pickle.loads(pickle.dumps(leaky))
    assert isinstance(twin, CudaOperator)
    assert (twin.device, twin.target) == (leaky.device, leaky.target)


def test_what_the_driver_refuses_names_device_and_architecture(
    leaky: CudaOperator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Arrays on a device that was not prepared: the simulated driver has only one."""
    with pytest.raises(DeviceError, match=r"opening the device on cuda:1 \(.*built for sm_90\)"):
        leaky(Array(F32, 1))


def test_a_graph_of_several_inputs_and_outputs(monkeypatch: pytest.MonkeyPatch) -> None:
    operator = simulated_operator(monkeypatch, graphs.scale_bias_leaky_relu(alpha=0.1, channels=5))
    rng = np.random.default_rng(0)
    arrays = [rng.normal(size=s).astype(np.float32) for s in ((3, 5), (5,), (5,))]
    graph = frontend.import_model(graphs.scale_bias_leaky_relu(alpha=0.1, channels=5))
    (wanted,) = reference.evaluate(graph, arrays)
    assert_same_bits(operator(*map(Array, arrays)).data, wanted, "rows")
    with pytest.raises(ArgumentError, match="scale"):
        operator(Array(arrays[0]), Array(arrays[1][:4]), Array(arrays[2]))


def test_a_cpu_operator_refuses_a_device_s_array() -> None:
    class OnDevice:
        def __dlpack__(self, **_: Any) -> Any:
            raise AssertionError

        def __dlpack_device__(self) -> tuple[int, int]:
            return 2, 0

    operator = relu_ops.compile(graphs.relu(), "x86-64-v2")
    with pytest.raises(ArgumentError, match="load the bundle with device='cuda'"):
        operator(OnDevice())


# ---------------------------------------------------------------- on a device


@pytest.mark.gpu
def test_the_check_for_devices_passes(tmp_path: Path) -> None:
    """The whole of scripts/check_cuda.py, on the device that is here."""
    script = Path(__file__).parents[1] / "scripts" / "check_cuda.py"
    for task in (["build"], ["run", "--quick", "--no-times"]):
        command = [sys.executable, script, *task, str(tmp_path)]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
