"""Folders for the `kernels` package: its own loader loads and runs them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from relu_ops import compiler, graphs
from relu_ops.bundle import store as bundles
from relu_ops.errors import ArgumentError
from relu_ops.ship import kernels as ours

_LOAD = """
import sys
from pathlib import Path
import kernels, numpy as np
module = kernels.get_local_kernel(Path(sys.argv[1]), backend="cpu")
print(module.leaky(np.float32([-2, 3])), module.load(name="relu")(np.float32([-2])))
try:
    module.other
except AttributeError as error:
    print(error)
"""


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("kernels") / "leaky.bundle"
    models = {"leaky": graphs.leaky_relu(alpha=0.5), "relu": graphs.relu()}
    compiler.build(models, ["x86-64-v2"], path)
    return path


def test_the_loader_loads_it(bundle: Path, tmp_path: Path) -> None:
    pytest.importorskip("kernels", reason="the package kernels is not installed")
    folder = ours.export(bundle, tmp_path / "out", name="leaky-demo")
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", _LOAD, folder], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr
    expected = "this kernel has no operator 'other'; it has leaky, relu"
    assert done.stdout.splitlines() == ["[-1.  3.] [0.]", expected]


def test_what_is_written(bundle: Path, tmp_path: Path) -> None:
    folder = ours.export(bundle, tmp_path, name="leaky-demo", version=3, license="mit")
    held = bundles.read(bundle)
    assert sorted(path.name for path in (folder / "build").iterdir()) == sorted(ours.variants(held))
    identifiers = set()
    for variant in (folder / "build").iterdir():
        metadata = json.loads((variant / "metadata.json").read_text())
        identifiers.add(metadata.pop("id"))
        assert metadata == {
            "name": "leaky-demo",
            "version": 3,
            "license": "mit",
            "python-depends": [],
            "backend": {"type": "cpu"},
        }
        assert bundles.read(variant / "operators.bundle", held.digest).contents == held.contents
    assert len(identifiers) == 2 and all(name.isidentifier() for name in identifiers)


def test_each_processor_has_a_variant(tmp_path: Path) -> None:
    made = compiler.make(graphs.relu(), ["aarch64", "x86-64-v3", "x86-64-v2"])
    held = bundles.from_contents("both", made)
    assert ours.variants(held) == (
        *("torch-cpu", "tvm-ffi01-cpu-aarch64-linux", "tvm-ffi01-cpu-x86_64-linux"),
    )


def test_a_changed_file_is_refused(bundle: Path, tmp_path: Path) -> None:
    folder = ours.export(bundle, tmp_path, name="leaky-demo")
    variant = folder / "build" / "torch-cpu"
    other = tmp_path / "other.bundle"
    compiler.build(graphs.relu(), ["x86-64-v2"], other)
    held = variant / "operators.bundle"
    for file in held.iterdir():
        file.unlink()
    for file in other.iterdir():
        (held / file.name).write_bytes(file.read_bytes())
    namespace = {"__file__": str(variant / "__init__.py")}
    exec((variant / "__init__.py").read_text(), namespace)
    with pytest.raises(bundles.BundleError, match="digest"):
        namespace["load"]()


def test_without_relu_ops_the_import_says_what_to_install(bundle: Path, tmp_path: Path) -> None:
    folder = ours.export(bundle, tmp_path, name="leaky-demo")
    module = folder / "build" / "torch-cpu" / "__init__.py"
    code = f"import sys; sys.modules['relu_ops'] = None; exec(open({str(module)!r}).read())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    last = "ImportError: this kernel is run by relu_ops: pip install relu_ops"
    assert done.returncode == 1 and done.stderr.splitlines()[-1] == last


@pytest.mark.parametrize("name", ["", "Leaky", "a b", "3d", "leaky_demo", "-a", "a-"])
def test_a_name_that_is_none(bundle: Path, tmp_path: Path, name: str) -> None:
    with pytest.raises(ArgumentError) as caught:
        ours.export(bundle, tmp_path, name=name)
    assert str(caught.value) == (
        f"export-kernel: name must be small letters, digits and single '-' (not {name!r})\n"
        "hint: for example leaky-demo"
    )
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("version", [0, -1, True, 1.5])
def test_a_version_that_is_none(bundle: Path, tmp_path: Path, version: int) -> None:
    with pytest.raises(ArgumentError, match="version must be a number from 1 on"):
        ours.export(bundle, tmp_path, name="demo", version=version)


def test_nothing_is_overwritten(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").touch()
    with pytest.raises(ArgumentError) as caught:
        ours.export(bundle, tmp_path, name="demo")
    assert str(caught.value) == f"{tmp_path}: is not empty\nhint: name a folder that is new"
    with pytest.raises(ArgumentError, match="cannot be written: Not a directory"):
        ours.export(bundle, tmp_path / "mine", name="demo")
