"""Models that other libraries hold are taken wherever a ModelProto is; none of them is imported."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import children
import numpy as np
import onnx
import pytest
from short_models import model, node, refusal, result
from test_model_files import external

import relu_ops
from relu_ops import graphs
from relu_ops.bench import cases
from relu_ops.compiler.frontend import import_model
from relu_ops.errors import ArgumentTypeError
from relu_ops.interop import onnx_backend
from relu_ops.report import inspect

X = np.float32([-2, 3])


# ---------------------------------------------------------------- onnx_ir


def test_an_onnx_ir_model() -> None:
    onnx_ir = pytest.importorskip("onnx_ir")
    made = onnx_ir.from_proto(graphs.leaky_relu(alpha=0.5))
    assert result(made, X) == [-1, 3]
    assert relu_ops.compile(made)(X).tolist() == [-1, 3]


def test_an_onnx_ir_model_with_external_data(tmp_path: Path) -> None:
    """Its proto does not say where the data lie; its tensors do."""
    onnx_ir = pytest.importorskip("onnx_ir")
    (tmp_path / "m.onnx").write_bytes(external("w.bin").SerializeToString())
    (tmp_path / "w.bin").write_bytes(np.float32([1, 2]).tobytes())
    made = onnx_ir.load(tmp_path / "m.onnx")
    assert result(made, [0, 0]) == [1, 2]
    assert made.graph.initializers["w"].const_value.base_dir  # as it was: nothing was read into it


def test_an_onnx_ir_model_reaches_no_file_outside_its_folder(tmp_path: Path) -> None:
    onnx_ir = pytest.importorskip("onnx_ir")
    made = onnx_ir.from_proto(external("../w.bin"))
    (tmp_path / "w.bin").write_bytes(bytes(8))
    (tmp_path / "inner").mkdir()
    made.graph.initializers["w"].const_value.base_dir = str(tmp_path / "inner")
    assert refusal(made) == (
        "tensor 'w': external data: '../w.bin' lies outside the model's folder"
    )


# ---------------------------------------------------------------- onnxscript


def test_an_onnxscript_function() -> None:
    made = pytest.importorskip("onnxscript_models", exc_type=ImportError)
    assert result(made.typed, X) == [-1, 3]
    assert relu_ops.compile(made.typed)(X).tolist() == [-1, 3]


def test_an_onnxscript_function_that_calls_another_with_a_default() -> None:
    made = pytest.importorskip("onnxscript_models", exc_type=ImportError)
    assert result(made.calling, X) == [-1.25, 6]


def test_an_onnxscript_function_without_types_is_refused_with_what_to_do() -> None:
    made = pytest.importorskip("onnxscript_models", exc_type=ImportError)
    assert refusal(made.untyped) == (
        "input 'x' has no type\nhint: declare it (in onnxscript by an annotation: x: FLOAT['N'])"
    )


# ---------------------------------------------------------------- spox, torch


def test_a_model_that_spox_builds() -> None:
    spox = pytest.importorskip("spox")
    import spox.opset.ai.onnx.v18 as op

    x = spox.argument(spox.Tensor(np.float32, ("N",)))
    made = spox.build({"x": x}, {"y": op.leaky_relu(x, alpha=0.5)})
    assert result(made, X) == [-1, 3]


def test_a_model_that_torch_exports() -> None:
    torch = pytest.importorskip("torch")
    pytest.importorskip("onnxscript")
    act = torch.nn.LeakyReLU(0.5).eval()
    try:
        made = torch.onnx.export(act, (torch.zeros(2),), dynamo=True, verbose=False)
    except Exception as error:
        pytest.skip(f"this torch and this onnxscript do not export together: {error}")
    assert result(made, X) == [-1, 3]


# ---------------------------------------------------------------- every door


def _of_onnx_ir() -> Any:
    return pytest.importorskip("onnx_ir").from_proto(graphs.leaky_relu(alpha=0.5))


def _of_onnxscript() -> Any:
    return pytest.importorskip("onnxscript_models", exc_type=ImportError).typed


def _of_spox() -> Any:
    spox = pytest.importorskip("spox")
    import spox.opset.ai.onnx.v18 as op

    x = spox.argument(spox.Tensor(np.float32, ("N",)))
    return spox.build({"x": x}, {"y": op.leaky_relu(x, alpha=0.5)})


OBJECTS: dict[str, Callable[[], Any]] = {
    "onnx": lambda: graphs.leaky_relu(alpha=0.5),
    "bytes": lambda: graphs.leaky_relu(alpha=0.5).SerializeToString(),
    "onnx_ir": _of_onnx_ir,
    "onnxscript": _of_onnxscript,
    "spox": _of_spox,
}


def _built(model: Any, folder: Path) -> Any:
    relu_ops.build(model, "native", folder / "one.bundle")
    return relu_ops.load(folder / "one.bundle")(X).tolist()


def _built_by_name(model: Any, folder: Path) -> Any:
    relu_ops.build({"other": graphs.relu(), "it": model}, "native", folder / "two.bundle")
    return relu_ops.load(folder / "two.bundle", name="it")(X).tolist()


def _timed(model: Any, _: Path) -> Any:
    case = cases.case_of(model, "it")
    assert (case.name, case.dtypes, case.alpha) == ("it", ("float32",), 0.5)
    return relu_ops.compile(case.make("float32"))(X).tolist()


DOORS: dict[str, Callable[[Any, Path], Any]] = {
    "compile": lambda model, _: relu_ops.compile(model)(X).tolist(),
    "build": _built,
    "build of several": _built_by_name,
    "verify": lambda model, _: relu_ops.verify(model, target="native").ok,
    "describe": lambda model, _: inspect.describe(model)["in_scope"],
    "source": lambda model, _: "LeakyRelu" in inspect.render(inspect.describe(model)),
    "assembly": lambda model, _: "ret" in inspect.source(model, kind="assembly"),
    "with_rank": lambda model, _: result(graphs.with_rank(model, 1), X),
    "serialize": lambda model, _: result(graphs.serialize(model), X),
    "bench": _timed,
    "backend": lambda model, _: onnx_backend.prepare(model).run([X])[0].tolist(),
    "run_model": lambda model, _: onnx_backend.run_model(model, [X])[0].tolist(),
    "is_compatible": lambda model, _: onnx_backend.is_compatible(model),
}


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("kind", OBJECTS)
def test_every_door_takes_every_kind_of_model(kind: str, door: str, tmp_path: Path) -> None:
    assert DOORS[door](OBJECTS[kind](), tmp_path) in ([-1, 3], True)


@pytest.mark.parametrize("door", DOORS)
def test_every_door_refuses_what_is_no_model(door: str, tmp_path: Path) -> None:
    with pytest.raises(ArgumentTypeError, match=r"model must be a path, .* \(not int\)"):
        DOORS[door](17, tmp_path)


# ---------------------------------------------------------------- what is none


@pytest.mark.parametrize("part", ["graph", "node", "function"])
def test_a_part_of_a_model_says_how_to_make_one(part: str) -> None:
    made = graphs.relu()
    parts: dict[str, Any] = {
        "graph": made.graph,
        "node": made.graph.node[0],
        "function": onnx.FunctionProto(),
    }
    with pytest.raises(ArgumentTypeError) as caught:
        import_model(parts[part])
    kind = type(parts[part]).__name__
    assert str(caught.value) == (
        "model must be a path, bytes, an onnx.ModelProto, an onnx_ir.Model or an onnxscript "
        f"function (not {kind})\nhint: wrap it with onnx.helper.make_model"
    )


def test_an_object_that_its_library_cannot_convert_is_refused_with_the_reason() -> None:
    onnx_ir = pytest.importorskip("onnx_ir")
    made = onnx_ir.from_proto(model([node("Relu", "x", "y")]))

    def fail() -> Any:
        raise OSError("the disk is gone")

    lazy = onnx_ir.LazyTensor(fail, onnx_ir.DataType.FLOAT, onnx_ir.Shape([1]), name="w")
    made.graph.initializers["w"] = onnx_ir.Value(name="w", const_value=lazy)
    assert refusal(made) == (
        "the onnx_ir.Model cannot be made an onnx.ModelProto: the disk is gone"
    )


def test_no_library_is_imported_for_a_model_that_is_not_of_it() -> None:
    code = """
import sys
from relu_ops import graphs
from relu_ops.compiler.frontend import import_model
from relu_ops.errors import ArgumentTypeError
import_model(graphs.relu())
try:
    import_model(object())
except ArgumentTypeError:
    print({"onnx_ir", "onnxscript", "spox", "torch"} & set(sys.modules))
"""
    done = children.run(code)
    assert done.stdout == "set()\n", done.stderr
