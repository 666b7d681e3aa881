"""The import table, as data: who may import what. And that the run path holds to it."""

from __future__ import annotations

import ast
from pathlib import Path

import children
import pytest

PACKAGE = Path(__file__).parents[1] / "relu_ops"

HEAVY = {"tvm", "tvm_ffi", "onnx", "onnxruntime", "torch", "matplotlib", "elftools", "capstone"}

# Heavy packages that a module may import at all, and those it may import at its top.
ALLOWED: dict[str, tuple[set[str], set[str]]] = {
    "graphs": ({"onnx"}, {"onnx"}),
    **{
        f"compiler.frontend.{name}": ({"onnx"}, {"onnx"})
        for name in ("check", "external", "functions", "importer", "objects", "operators")
    },
    "compiler.frontend.read": ({"onnx"}, {"onnx"}),
    "compiler.frontend.scope": ({"onnx"}, {"onnx"}),
    "gradients.__init__": ({"onnx"}, {"onnx"}),
    "gradients.writer": ({"onnx"}, {"onnx"}),
    "compiler.legalize": ({"tvm"}, {"tvm"}),
    "compiler.schedule_x86": ({"tvm"}, {"tvm"}),
    "compiler.schedule_cuda": ({"tvm"}, {"tvm"}),
    "compiler.codegen": ({"tvm"}, {"tvm"}),
    "compiler.codegen_cuda": ({"tvm", "tvm_ffi"}, {"tvm", "tvm_ffi"}),
    "compiler.objects": ({"elftools"}, {"elftools"}),
    "compiler.disassembly": ({"capstone"}, set()),
    "compiler.__init__": ({"tvm"}, set()),
    "interop.onnx_backend": ({"onnx"}, {"onnx"}),
    "verification.explain": ({"onnx"}, set()),
    "verification.judge": ({"onnx"}, set()),
    "verification.deviations": ({"onnx"}, set()),
    "verification.referees": ({"onnx", "onnxruntime"}, set()),
    "bench.engines": ({"onnxruntime", "tvm"}, set()),
    "bench.frameworks": ({"torch"}, set()),
    "bench.cuda": ({"torch"}, set()),
    "bench.environment": ({"torch"}, set()),
    "bench.process": ({"onnx", "tvm"}, set()),
    "bench.plots": ({"matplotlib"}, set()),
    "inspect": ({"onnx"}, set()),
    "plot": ({"matplotlib", "onnx"}, set()),
}

# Modules of the lower layers, and what of relu_ops they may import.
LAYERS: dict[str, set[str]] = {
    "errors": set(),
    "semantics": set(),
    "log": set(),
    "ir": set(),
    "targets": {"errors", "native"},
    "reference": {"ir", "semantics"},
    "graphs": {"compiler", "errors", "gradients", "semantics"},
    "gradients.paths": {"ir", "semantics"},
    "gradients.writer": {"compiler", "errors", "ir", "reference", "semantics"},
    "gradients.formulas": set(),
    "gradients.backward": {"errors", "ir", "semantics"},
    "gradients.__init__": {"compiler", "errors", "ir", "semantics"},
    "config": {"errors", "native"},
    "manifest": {"errors", "semantics", "targets"},
    "bundle": {"errors", "manifest", "native"},
    "runtime.threads": {"errors", "native"},
    "runtime.tuning": {"errors", "targets"},
    "runtime.memory": set(),
    "runtime.arrays": {"errors", "native", "semantics"},
    "runtime.operator": {"bundle", "errors", "native", "semantics"},
    "runtime.dispatch": {"bundle", "errors", "log", "targets"},
    "cache": {"bundle", "errors", "log", "manifest"},
    "compiler.frontend.limits": {"errors", "native"},
    "compiler.frontend.scope": {"errors", "semantics"},
    "compiler.frontend.shapes": {"ir"},
    "compiler.frontend.functions": {"compiler", "errors"},
    "compiler.frontend.check": {"compiler", "errors"},
    "compiler.frontend.files": {"compiler", "errors"},
    "compiler.frontend.external": {"compiler", "errors", "ir", "semantics"},
    "compiler.frontend.objects": {"errors"},
    "compiler.frontend.read": {"compiler", "errors"},
    "compiler.frontend.operators": {"compiler", "errors", "ir", "reference", "semantics"},
    "compiler.frontend.importer": {"compiler", "errors", "ir", "reference", "semantics"},
    "compiler.legalize": {"ir", "semantics"},
    "compiler.schedule": {"ir"},
    "compiler.lookup": {"ir", "reference", "compiler", "semantics"},
    "compiler.schedule_x86": {"ir", "compiler", "semantics", "targets"},
    "compiler.schedule_cuda": {"ir", "compiler", "semantics"},
    "compiler.codegen": {"ir", "compiler", "errors", "targets"},
    "compiler.codegen_cuda": {"ir", "compiler", "errors", "targets"},
    "compiler.nvrtc": {"errors"},
    "compiler.objects": {"errors"},
    "compiler.layout": set(),
    "compiler.image": {"ir", "compiler", "errors", "native", "semantics", "targets"},
    "compiler.disassembly": {"compiler", "errors"},
    "compiler.toolchain": {"_version"},
}


def module_name(path: Path) -> str:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts)


MODULES = {module_name(p): p for p in sorted(PACKAGE.rglob("*.py"))}


def imports(path: Path, *, top: bool) -> set[str]:
    """Dotted names that a module imports; only outside functions where `top`."""
    tree = ast.parse(path.read_text())
    found: set[str] = set()
    pending: list[ast.AST] = list(tree.body)
    while pending:
        node = pending.pop()
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif (isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)) or (
            top and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        ):
            continue
        pending += ast.iter_child_nodes(node)
    return found


@pytest.mark.parametrize("name", MODULES)
def test_heavy_packages_stay_where_the_table_has_them(name: str) -> None:
    anywhere, at_top = ALLOWED.get(name, (set(), set()))
    for top, allowed in ((False, anywhere), (True, at_top)):
        found = {i.partition(".")[0] for i in imports(MODULES[name], top=top)} & HEAVY
        assert found <= allowed, f"{name} imports {found - allowed}"


@pytest.mark.parametrize("name", LAYERS)
def test_layers_import_downwards(name: str) -> None:
    own = {i for i in imports(MODULES[name], top=False) if i.startswith("relu_ops.")}
    layers = {i.split(".")[1] for i in own} - {name.split(".")[0]} | {
        "compiler" for i in own if i.startswith("relu_ops.compiler") and "compiler" not in name
    }
    assert layers <= LAYERS[name] | {name.split(".")[0]}, f"{name} imports {layers}"


def loaded_after(code: str) -> set[str]:
    script = f"{code}\nimport sys\nprint(*{{m.partition('.')[0] for m in sys.modules}})"
    done = children.run(script)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


def test_importing_the_package_loads_nothing_heavy() -> None:
    assert not loaded_after("import relu_ops") & (HEAVY | {"numpy"})


def test_every_public_name_is_there_at_once() -> None:
    code = "import relu_ops\nassert {n: getattr(relu_ops, n) for n in reversed(relu_ops.__all__)}"
    assert children.run(code).stderr == ""
    assert not loaded_after("import relu_ops; relu_ops.errors.BundleError") & HEAVY


def test_running_a_bundle_loads_nothing_heavy(tmp_path: Path) -> None:
    from relu_ops import compiler, graphs

    compiler.build(graphs.relu(), ["native"], tmp_path / "relu.bundle")
    code = f"""
import numpy as np, relu_ops
op = relu_ops.load({str(tmp_path / "relu.bundle")!r})
assert op(np.float32([-1, 2])).tolist() == [0, 2]
assert op(np.ones((2, 3), np.float32)[:, ::2], out=None).shape == (2, 2)
"""
    loaded = loaded_after(code)
    assert not loaded & HEAVY


def test_a_warm_cache_answers_relu_without_onnx_and_tvm() -> None:
    code = "import relu_ops; relu_ops.relu([1.0])"
    loaded_after(code)
    assert not loaded_after(code) & HEAVY
