"""Operators as functions of tvm-ffi."""

from __future__ import annotations

import gc
import shutil
import subprocess
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cases import SPECIALS, expected, same_bits

import relu_ops
from relu_ops import graphs
from relu_ops.errors import ArgumentError, ArgumentTypeError

tvm_ffi = pytest.importorskip("tvm_ffi")
door = pytest.importorskip("relu_ops.interop.tvm_ffi")


def tensors(*arrays: np.ndarray) -> list[Any]:
    return [tvm_ffi.from_dlpack(x) for x in arrays]


def test_a_function_computes_into_its_last_arguments() -> None:
    op = relu_ops.compile(graphs.scale_bias_leaky_relu(alpha=0.5, channels=4))
    f = door.function(op)
    x = np.arange(-4, 4, dtype=np.float32).reshape(2, 4)
    scale, bias, y = np.full(4, 2, np.float32), np.ones(4, np.float32), np.empty_like(x)
    assert f(*tensors(x, scale, bias, y)) is None
    assert (y == op(x, scale, bias)).all()
    z = np.ascontiguousarray(x.T)
    f(*tensors(z.T, scale, bias, y))  # strides
    assert (y == op(x, scale, bias)).all()


def test_it_holds_what_it_needs() -> None:
    op = relu_ops.compile(graphs.relu())
    f = door.function(op)
    del op
    gc.collect()
    x = np.float32([-1, 2])
    f(*tensors(x, x))  # in place
    assert x.tolist() == [0, 2]


def test_what_is_wrong_is_a_sentence() -> None:
    f = door.function(relu_ops.compile(graphs.relu()))
    x, y = np.float32([-1, 2]), np.empty(2, np.float32)
    with pytest.raises(TypeError, match=r"relu takes 2 tensors, 1 inputs and 1 outputs \(it was"):
        f(*tensors(x))
    with pytest.raises(TypeError, match="relu: argument 1 must be a tensor"):
        f(*tensors(x), 3)
    with pytest.raises(TypeError, match=r"relu: x\.dtype must be float32 \(not float64\)"):
        f(*tensors(x.astype(np.float64), y))
    with pytest.raises(ValueError, match=r"relu: out for y\.shape must be \(2,\) \(not \(3,\)\)"):
        f(*tensors(x, np.empty(3, np.float32)))
    with pytest.raises(ArgumentTypeError, match=r"must be a relu_ops\.Operator"):
        door.function(np.abs)


def test_global_functions() -> None:
    op, other = relu_ops.compile(graphs.relu()), relu_ops.compile(graphs.leaky_relu(alpha=0.5))
    name = "relu_ops.test_global_functions"
    door.register(op, name)
    with pytest.raises(ArgumentError, match=f"has a global function called '{name}' already"):
        door.register(other, name)
    door.register(other, name, override=True)
    x = np.float32([-1, 2])
    tvm_ffi.get_global_func(name)(*tensors(x, x))
    assert x.tolist() == [-0.5, 2]
    tvm_ffi.registry.remove_global_func(name)


def test_tvm_calls_it() -> None:
    tvm = pytest.importorskip("tvm")
    f = door.function(relu_ops.compile(graphs.relu()))
    x, y = tvm.runtime.tensor(np.float32([-1, 2])), tvm.runtime.empty((2,), "float32")
    f(x, y)
    assert y.numpy().tolist() == [0, 2]


def test_threads() -> None:
    op = relu_ops.compile(graphs.leaky_relu(alpha=0.5))
    f, failures = door.function(op), []

    def work(seed: int) -> None:
        x = np.random.default_rng(seed).standard_normal(100_000).astype(np.float32)
        y = np.empty_like(x)
        for _ in range(20):
            f(*tensors(x, y))
            if not (y == np.where(x < 0, x * np.float32(0.5), x)).all():
                failures.append(seed)

    threads = [threading.Thread(target=work, args=(k,)) for k in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


CPP = """
#include <tvm/ffi/tvm_ffi.h>

#include <cstdlib>
#include <string>
#include <thread>

namespace ffi = tvm::ffi;

struct Heap {
  void AllocData(DLTensor* x) { x->data = std::malloc(ffi::GetDataSize(*x)); }
  void FreeData(DLTensor* x) { std::free(x->data); }
};

/* Calls a function on a thread that Python has never seen, into memory of its own. */
ffi::Tensor Apply(ffi::String name, ffi::Tensor x) {
  ffi::Function f = ffi::Function::GetGlobalRequired(std::string(name));
  ffi::Tensor y = ffi::Tensor::FromNDAlloc(Heap(), x.shape(), x.dtype(), x.device());
  std::string refused;
  std::thread([&] {
    try {
      f(x, y);
    } catch (const ffi::Error& error) {
      refused = error.kind() + ": " + error.message();
    }
  }).join();
  if (!refused.empty()) TVM_FFI_THROW(RuntimeError) << "caught in C++: " << refused;
  return y;
}

TVM_FFI_DLL_EXPORT_TYPED_FUNC(apply, Apply);
"""


@pytest.fixture(scope="module")
def cpp(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A library of C++ that knows nothing but tvm-ffi's headers."""
    compiler = shutil.which("c++")
    if compiler is None:
        pytest.skip("there is no c++ on PATH")
    folder = tmp_path_factory.mktemp("cpp")
    (folder / "apply.cc").write_text(CPP)
    includes = [f"-I{path}" for path in tvm_ffi.libinfo.include_paths()]
    library = Path(tvm_ffi.libinfo.find_libtvm_ffi())
    command = [compiler, "-std=c++17", "-shared", "-fPIC", "-pthread", *includes, "apply.cc"]
    subprocess.run([*command, library, "-o", "apply.so"], cwd=folder, check=True)
    return tvm_ffi.load_module(folder / "apply.so")


def test_cpp_calls_it(cpp: Any) -> None:
    model, name = graphs.leaky_relu(alpha=0.5), "relu_ops.test_cpp_calls_it"
    door.register(relu_ops.compile(model), name)
    x = SPECIALS["float32"]
    y = cpp.apply(name, tvm_ffi.from_dlpack(x))
    assert same_bits(np.from_dlpack(y), expected(model, [x])[0])
    refused = r"caught in C\+\+: TypeError: leaky_relu: x\.dtype must be float32 \(not float64\)"
    with pytest.raises(RuntimeError, match=refused):
        cpp.apply(name, tvm_ffi.from_dlpack(x.astype(np.float64)))
    tvm_ffi.registry.remove_global_func(name)
    with pytest.raises(ValueError, match=f"Function {name} not found"):
        cpp.apply(name, tvm_ffi.from_dlpack(x))


def test_jax_calls_it() -> None:
    jax = pytest.importorskip("jax", reason="pip install jax jax-tvm-ffi")
    by_tvm_ffi = pytest.importorskip("jax_tvm_ffi", reason="pip install jax-tvm-ffi")
    model, name = graphs.leaky_relu(alpha=0.5), "relu_ops.test_jax_calls_it"
    by_tvm_ffi.register_ffi_target(name, door.function(relu_ops.compile(model)), platform="cpu")

    @jax.jit
    def leaky(x: Any, dtype: Any = np.float32) -> Any:
        return jax.ffi.ffi_call(name, jax.ShapeDtypeStruct(x.shape, dtype))(x)

    x = SPECIALS["float32"]
    assert same_bits(np.asarray(leaky(x)), expected(model, [x])[0])
    with pytest.raises(Exception, match=r"x\.dtype must be float32 \(not int32\)"):
        leaky(np.zeros(4, np.int32)).block_until_ready()
