"""Device code: what TVM and NVRTC make for CUDA, read as machine code and PTX, and its images.

No GPU takes part. What the kernels compute is seen in test_cuda_simulated.py.
"""

from __future__ import annotations

import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

import relu_ops
from relu_ops import graphs, targets
from relu_ops.bundle import store as bundle
from relu_ops.compiler import frontend, layout, toolchain
from relu_ops.compiler.cuda import codegen as codegen_cuda
from relu_ops.compiler.cuda import nvrtc
from relu_ops.compiler.cuda import schedule as schedule_cuda
from relu_ops.errors import BuildError, MissingDependencyError
from relu_ops.report import inspect


def _is_here() -> bool:
    try:
        return bool(nvrtc.architectures())
    except MissingDependencyError:
        return False


needs_nvrtc = pytest.mark.skipif(not _is_here(), reason="there is no NVRTC (relu_ops[cuda])")

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
    """One of NVIDIA's disassemblers: of the wheels, or on PATH."""
    beside = [folder / "bin" / name for folder in nvrtc.folders()]
    found = next((str(path) for path in beside if path.is_file()), shutil.which(name))
    if not found:
        pytest.skip(f"there is no {name} (relu_ops[test])")
    done = subprocess.run([found, *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def fat_binary(model: onnx.ModelProto, target: str, *flags: Sequence[str]) -> bytes:
    graph = frontend.import_model(model)
    kernels = codegen_cuda.scheduled(graph)
    return codegen_cuda.fat_binary(graph, kernels, targets.parse(target), *flags)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The device code of graphs whose inner loops are looked at, for every architecture."""
    if not _is_here():
        pytest.skip("there is no NVRTC (relu_ops[cuda])")
    folder = tmp_path_factory.mktemp("cuda")
    made = {}
    for name, model in LOOKED_AT.items():
        made[name] = folder / f"{name}.fatbin"
        made[name].write_bytes(fat_binary(model, "cuda"))
    return made


def sass_of(path: Path, sm: int) -> dict[str, str]:
    """The machine code of each kernel."""
    text = run_tool("cuobjdump", "-sass", "-arch", f"sm_{sm}", str(path))
    parts = re.split(r"Function : (\w+)", text)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def test_every_architecture_is_there(built: dict[str, Path]) -> None:
    listed = run_tool("cuobjdump", "--list-elf", "--list-ptx", str(built["relu"]))
    wanted = [str(sm) for sm in codegen_cuda.ARCHITECTURES]
    assert len(wanted) >= 7
    assert re.findall(r"sm_(\d+)\.cubin", listed) == wanted
    assert re.findall(r"sm_(\d+)\.ptx", listed) == [wanted[0], wanted[-1]]


def test_ptx_is_for_drivers_of_cuda_13_0(built: dict[str, Path]) -> None:
    """A driver takes the PTX of its own generation of compilers and of older ones."""
    text = run_tool("cuobjdump", "-ptx", str(built["relu"]))
    assert set(re.findall(r"^\.version (\S+)", text, re.MULTILINE)) == {"9.0"}


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


@needs_nvrtc
@pytest.mark.parametrize(("flag", "found"), [("-fmad=true", "FFMA"), ("-ftz=true", "FTZ")])
def test_a_contraction_or_a_flush_would_be_found(tmp_path: Path, flag: str, found: str) -> None:
    path = tmp_path / "fused.fatbin"
    path.write_bytes(fat_binary(LOOKED_AT["scale_bias_leaky_relu"], "cuda-sm_90", [flag]))
    assert found in " ".join(inexact(sass_of(path, 90)["tile_0"]))


def test_ptx_has_no_contraction_and_no_flush(built: dict[str, Path]) -> None:
    for name, path in built.items():
        text = run_tool("cuobjdump", "-ptx", str(path))
        assert ".entry tile_0" in text, name
        # That of the newest: sm_75 has no instruction for products of bfloat16, and one of the
        # longer forms that stand for it is left to the driver's compiler.
        newest = text.split(".target sm_")[-1]
        assert not re.search(r"\bfma\.(?!rn\.bf16)|\bmad\.[a-z.]*f(16|32|64)|\.ftz", newest), name
        assert re.search(r"ld\.global\.v[24]\.", newest), name


def test_device_code_is_small(built: dict[str, Path]) -> None:
    assert max(path.stat().st_size for path in built.values()) < 2**18


@needs_nvrtc
def test_two_builds_give_the_same_bytes() -> None:
    assert fat_binary(LOOKED_AT["relu"], "cuda-sm_90") == fat_binary(
        LOOKED_AT["relu"], "cuda-sm_90"
    )


@needs_nvrtc
def test_an_architecture_that_nvrtc_does_not_know() -> None:
    message = r"^NVRTC [0-9.]+ cannot compile for sm_61\nhint: it knows sm_75, sm_80, "
    with pytest.raises(BuildError, match=message):
        fat_binary(LOOKED_AT["relu"], "cuda-sm_61")


@needs_nvrtc
def test_a_source_that_is_refused_shows_why() -> None:
    with pytest.raises(BuildError, match=r"^NVRTC refuses the kernels for sm_90:\nkernels.cu\(1\)"):
        nvrtc.compile_source("int f() { return x; }", {}, [], "sm_90")


def test_without_nvrtc_the_error_says_what_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nvrtc, "folders", lambda: ())
    monkeypatch.setattr(nvrtc, "_nvrtc", nvrtc._nvrtc.__wrapped__)
    with pytest.raises(MissingDependencyError) as caught:
        nvrtc.architectures()
    assert caught.value.hint == "pip install 'relu_ops[cuda]'"


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
    text = codegen_cuda.sources(frontend.import_model(model)).cuda
    assert f"__longlong_as_double((int64_t){tiny.view(np.int64)})" in text


# ---------------------------------------------------------------- images

CODES = (
    *("cuda_13.0", "sm_75", "sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_120"),
    *("compute_75", "compute_120"),
)


def two_operators() -> dict[str, onnx.ModelProto]:
    return {"first": graphs.relu(), "second": graphs.scale_bias_leaky_relu(alpha=0.1)}


@needs_nvrtc
def test_an_image_for_cuda(tmp_path: Path) -> None:
    """The manifest, the image and `inspect` say what there is code for, and what made it."""
    relu_ops.build(two_operators(), ["x86-64-v2", "cuda-sm_90"], tmp_path / "b")
    held = bundle.read(tmp_path / "b")
    assert held.handle.operators == ("first", "second")
    assert held.handle.targets == ("cuda-sm_90", "x86-64-v2")
    entry = next(each for each in held.manifest.images if each.target == "cuda-sm_90")
    assert entry.requires.features == ("cuda_13.0", "sm_90")
    packages = ("nvidia-cuda-cccl", "nvidia-cuda-nvrtc", "nvidia-nvfatbin")
    for package in packages:
        assert held.manifest.producer[package] == importlib.metadata.version(package)
    header = np.frombuffer(held.image("cuda-sm_90"), layout.HEADER, 1)[0]
    assert header["machine"] == layout.CUDA
    description = inspect.describe(tmp_path / "b")
    shown = next(each for each in description["targets"] if each["name"] == "cuda-sm_90")
    assert shown["requires"] == ["cuda_13.0", "sm_90"]
    assert "for CUDA 13.0: sm_90" in inspect.render(description)
    assert inspect.rebuild_check(tmp_path / "b")["identical"]


def test_the_fat_target_says_each_code() -> None:
    if not _is_here():
        pytest.skip("there is no NVRTC (relu_ops[cuda])")
    assert codegen_cuda.requirements(targets.parse("cuda")) == CODES


def test_nothing_of_nvidia_stands_in_a_bundle_for_cpus() -> None:
    """Nor in its cache key: who has no compiler of NVIDIA's needs none."""
    assert not [name for name in toolchain.producer() if name.startswith("nvidia")]
    assert toolchain.producer([targets.parse("cuda")]).keys() > toolchain.producer().keys()


ELSEWHERE = """
import os, sys
if sys.argv[1] != "here":
    os.chdir("/")
    os.uname = lambda: os.uname_result(("Linux", "elsewhere", "6", "1", "aarch64"))
    import platform
    platform.machine = lambda: "aarch64"
from relu_ops import compiler, graphs
made = compiler.make(graphs.leaky_relu(alpha=0.1), ["cuda-sm_90"])
sys.stdout.buffer.write(made["cuda-sm_90.image"])
"""


@needs_nvrtc
def test_no_byte_depends_on_the_host(tmp_path: Path) -> None:
    """Whatever processor, folder, locale, temporary folder and hash seed there are."""
    images = []
    for where, environment in (
        ("here", {}),
        (
            "elsewhere",
            {"LC_ALL": "C", "TMPDIR": str(tmp_path), "PYTHONHASHSEED": "7", "HOME": str(tmp_path)},
        ),
    ):
        done = subprocess.run(
            [sys.executable, "-c", ELSEWHERE, where],
            env={**os.environ, **environment},
            capture_output=True,
        )
        assert done.returncode == 0, done.stderr
        images.append(done.stdout)
    assert images[0] == images[1]
    for word in (b"x86_64", b"x86-64", os.fsencode(Path.home()), os.fsencode(sys.prefix)):
        assert word not in images[0]


def test_the_core_launches_what_the_schedule_expects() -> None:
    """The numbers that stand in C and in Python."""
    text = (Path(relu_ops.__file__).parent / "native/run_cuda.c").read_text()

    def of(name: str) -> int:
        found = re.search(rf"^  {name} = (\d+),", text, re.MULTILINE)
        assert found, name
        return int(found[1])

    assert of("THREADS") == schedule_cuda.THREADS
    assert of("PLANE_RANK") == schedule_cuda.PLANE_RANK
    assert of("SCALARS") == len(schedule_cuda.SCALARS)
