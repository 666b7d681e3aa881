"""Operators over arrays of dask, xarray and polars: lazily, in threads, processes and a cluster."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import relu_ops
from relu_ops import Operator, compiler, graphs
from relu_ops.errors import ArgumentError

dask = pytest.importorskip("dask", reason="dask is not installed: pip install 'dask[array]'")
da = pytest.importorskip("dask.array", reason="dask is not installed: pip install 'dask[array]'")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("dask") / "leaky.bundle"
    compiler.build(graphs.leaky_relu(alpha=0.5), ["native"], path)
    return path


@pytest.fixture(scope="module")
def op(bundle: Path) -> Operator:
    return relu_ops.load(bundle)


def numbers(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape, np.float32)


def right(x: np.ndarray) -> np.ndarray:
    return np.where(x < 0, np.float32(0.5) * x, x)


WAYS: dict[str, Any] = {
    "map_blocks": lambda op, x: x.map_blocks(op, dtype=x.dtype),
    "map_blocks that asks for the dtype": lambda op, x: x.map_blocks(op),
    "apply_gufunc": lambda op, x: da.apply_gufunc(op, "()->()", x, output_dtypes=x.dtype),
    "blockwise": lambda op, x: da.blockwise(op, "ij", x, "ij", dtype=x.dtype),
}


@pytest.mark.parametrize("scheduler", ["synchronous", "threads", "processes"])
@pytest.mark.parametrize("way", WAYS)
def test_it_stays_lazy_and_is_right(op: Operator, way: str, scheduler: str) -> None:
    x = numbers(60, 50)
    lazy = WAYS[way](op, da.from_array(x, chunks=(17, 50)))
    assert isinstance(lazy, da.Array)
    assert (lazy.shape, lazy.dtype, lazy.chunks[0]) == (x.shape, x.dtype, (17, 17, 17, 9))
    y = lazy.compute(scheduler=scheduler, num_workers=2)
    assert np.array_equal(y, right(x))


def test_an_operator_is_known_by_its_digest(op: Operator, bundle: Path, tmp_path: Path) -> None:
    from dask.base import tokenize

    again, other = tmp_path / "again.bundle", tmp_path / "other.bundle"
    compiler.build(graphs.leaky_relu(alpha=0.5), ["native"], again)
    compiler.build(graphs.leaky_relu(alpha=0.25), ["native"], other)
    token = tokenize(op)
    assert token == tokenize(relu_ops.load(bundle)) == tokenize(relu_ops.load(again))
    assert token != tokenize(relu_ops.load(other))
    assert token != tokenize(relu_ops.load(bundle, target=op.target))  # it was asked for
    x = da.ones((4, 4), chunks=2, dtype=np.float32)
    assert x.map_blocks(op).name == x.map_blocks(relu_ops.load(again)).name
    assert x.map_blocks(op).name.startswith("leaky_relu-")


def test_several_inputs(tmp_path: Path) -> None:
    compiler.build(graphs.add_relu(), ["native"], tmp_path / "add.bundle")
    add = relu_ops.load(tmp_path / "add.bundle")
    a, b = numbers(30, 20), numbers(30, 20)[::-1]
    lazy = da.map_blocks(add, da.from_array(a, chunks=7), da.from_array(b, chunks=7))
    total = a + b
    assert np.array_equal(lazy.compute(), np.where(total < 0, np.float32(0), total))


def test_an_array_on_disk_that_is_larger_than_what_a_process_holds(
    bundle: Path, tmp_path: Path
) -> None:
    """Chunk by chunk: 256 MB in, 256 MB out, and no more than 100 MB at any moment."""
    zarr = pytest.importorskip("zarr", reason="zarr is not installed")
    count, chunk = 1 << 26, 1 << 20
    settings = {"dtype": np.float32, "chunks": (chunk,), "compressors": None}
    source = zarr.create_array(str(tmp_path / "x"), shape=(count,), **settings)
    zarr.create_array(str(tmp_path / "y"), shape=(count,), **settings)
    source[:] = np.tile(np.float32([-2, 3, -4, 5]), count // 4)
    code = f"""
import numpy as np, dask.array as da, relu_ops, zarr
op = relu_ops.load({str(bundle)!r})
y = zarr.open_array({str(tmp_path / "y")!r}, mode="r+")
def own_megabytes():
    lines = open("/proc/self/status").read().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) / 1024
before, most = own_megabytes(), 0
def watched(block):
    global most
    result = op(block)
    most = max(most, own_megabytes())
    return result
x = da.from_zarr({str(tmp_path / "x")!r})
lazy = x.map_blocks(watched, dtype=x.dtype, meta=np.empty(0, "f4"))
da.store(lazy, y, lock=False, num_workers=2)
print(round(most - before))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 100
    y = zarr.open_array(str(tmp_path / "y"), mode="r")[:].reshape(-1, 4)
    assert (y == np.float32([-1, 3, -2, 5])).all()


# ---------------------------------------------------------------- a cluster


@pytest.fixture(scope="module")
def client() -> Iterator[Any]:
    distributed = pytest.importorskip("distributed", reason="distributed is not installed")
    settings = {"distributed.worker.daemon": False, "distributed.admin.log-format": "%(message)s"}
    with (
        dask.config.set(settings),
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, dashboard_address=None, protocol="tcp://"
        ) as cluster,
        distributed.Client(cluster) as client,
    ):
        yield client


def test_a_cluster_computes_without_a_compiler(client: Any, op: Operator) -> None:
    x = numbers(400, 300)
    y = da.from_array(x, chunks=50).map_blocks(op, dtype=x.dtype).compute()
    assert np.array_equal(y, right(x))
    loaded = "sorted({'tvm', 'onnx', 'onnxruntime'} & set(__import__('sys').modules))"
    assert list(client.run(eval, loaded).values()) == [[], []]  # a function of ours would load this


def _slowly(block: np.ndarray, op: Operator) -> np.ndarray:
    time.sleep(0.05)
    return op(block)


def test_a_worker_that_is_lost_changes_nothing(client: Any, op: Operator) -> None:
    x = numbers(400, 300)
    future = client.compute(da.from_array(x, chunks=50).map_blocks(_slowly, op, dtype=x.dtype))
    time.sleep(0.3)
    victim = next(iter(client.run(os.getpid).values()))
    os.kill(victim, signal.SIGKILL)
    assert np.array_equal(future.result(timeout=60), right(x))


# ---------------------------------------------------------------- xarray, polars


def test_xarray(op: Operator) -> None:
    xr = pytest.importorskip("xarray", reason="xarray is not installed")
    x = numbers(6, 5)
    there = xr.DataArray(x, dims=("a", "b"), coords={"a": range(6)})
    y = xr.apply_ufunc(op, there)
    assert y.dims == there.dims and np.array_equal(y.values, right(x))
    lazy = xr.apply_ufunc(op, there.chunk(a=2), dask="parallelized", output_dtypes=[x.dtype])
    assert isinstance(lazy.data, da.Array)
    assert np.array_equal(lazy.values, right(x))


def test_polars(op: Operator) -> None:
    pl = pytest.importorskip("polars", reason="polars is not installed")
    frame = pl.DataFrame({"x": np.float32([-1, 2, 3])})
    column = pl.col("x").map_batches(op, return_dtype=pl.Float32)
    for result in (frame.select(column), frame.lazy().select(column).collect()):
        assert result.schema == {"x": pl.Float32}
        assert result["x"].to_list() == [-0.5, 2.0, 3.0]
    with pytest.raises((ArgumentError, pl.exceptions.ComputeError), match="has 1 null"):
        pl.DataFrame({"x": [1.0, None]}, schema={"x": pl.Float32}).select(column)
