"""The import table, as data: who imports what, every module. And that the run path holds to it.

`python tests/test_imports.py` writes the table anew: read what it changed before you commit it.
"""

from __future__ import annotations

import ast
from pathlib import Path

import children
import pytest

PACKAGE = Path(__file__).parents[1] / "relu_ops"
TABLE = Path(__file__).with_name("imports.txt")

HEAVY = {
    "capstone", "elftools", "jax", "jax_tvm_ffi", "matplotlib", "numba", "onnx", "onnxruntime",
    "torch", "tvm", "tvm_ffi",
}  # fmt: skip


def name_of(path: Path) -> str:
    """As it is imported, below relu_ops; "relu_ops" is the package itself."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts) or "relu_ops"


MODULES = {name_of(p): p for p in sorted(PACKAGE.rglob("*.py"))}
NATIVE = "native._python"


def is_for_types(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)


def imported(path: Path, *, top: bool) -> set[str]:
    """Modules of relu_ops and heavy packages that a module imports; outside functions if `top`."""
    found: set[str] = set()
    pending: list[ast.AST] = list(ast.parse(path.read_text()).body)
    while pending:
        node = pending.pop()
        if is_for_types(node) or (top and isinstance(node, ast.FunctionDef)):
            continue
        if isinstance(node, ast.Import):
            found |= {own(alias.name) for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {own(f"{node.module}.{alias.name}") for alias in node.names}
        pending += ast.iter_child_nodes(node)
    return found - {"", name_of(path)}


def own(name: str) -> str:
    """The module of relu_ops, or the heavy package, that an import names; else ""."""
    head, _, rest = name.partition(".")
    if head != "relu_ops":
        return head if head in HEAVY else ""
    while rest and rest not in MODULES and rest != NATIVE:
        rest = rest.rpartition(".")[0]
    return rest or "relu_ops"


def line_of(name: str) -> str:
    """A line of the table: what is imported with the module, then what its functions import."""
    first = imported(MODULES[name], top=True)
    later = imported(MODULES[name], top=False) - first
    texts = (" ".join(sorted(names)) for names in (first, later))
    return "; later ".join(text for text in texts).removesuffix("; later ")


def table() -> dict[str, str]:
    lines = [line.partition(":") for line in TABLE.read_text().splitlines()]
    return {name: rest.strip() for name, _, rest in lines}


def test_the_table_has_every_module() -> None:
    assert list(table()) == list(MODULES)


@pytest.mark.parametrize("name", MODULES)
def test_a_module_imports_what_the_table_says(name: str) -> None:
    assert line_of(name) == table()[name]


def test_no_module_imports_itself_by_way_of_others() -> None:
    """Folders' `__init__` count: importing a module runs those of its folders first."""
    needs = {name: imported(path, top=True) & set(MODULES) for name, path in MODULES.items()}
    done: set[str] = set()

    def visit(name: str, way: tuple[str, ...]) -> None:
        assert name not in way, " > ".join((*way, name))
        if name not in done:
            for one in sorted(needs[name]):
                visit(one, (*way, name))
            done.add(name)

    for name in MODULES:
        visit(name, ())


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


if __name__ == "__main__":
    TABLE.write_text("".join(f"{name}: {line_of(name)}\n" for name in MODULES))
