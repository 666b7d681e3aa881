"""Runs what a test made in the onnxruntime of whatever Python runs this: no relu_ops, no onnx.

Arguments: the library, a bundle, and a folder with NAME.onnx and NAME.npz (inputs `in_NAME`,
expected outputs `out_0`, `out_1`, ...). Prints one line a check; whatever is wrong is an exception.
"""

from __future__ import annotations

import gc
import sys
import threading
from pathlib import Path

import numpy as np
import onnxruntime

# A collector of doctests imports this too.
LIBRARY, BUNDLE, FOLDER = sys.argv[1:4] if __name__ == "__main__" else ("", "", "")


def session(model: Path, bundles: str | None = BUNDLE, threads: int = 2, **settings: object):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    for name, value in settings.items():
        setattr(options, name, value)
    if bundles is not None:
        options.add_session_config_entry("relu_ops.bundles", bundles)
    options.register_custom_ops_library(LIBRARY)
    return onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])


def bits(x: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(x).view(f"u{x.dtype.itemsize}")


def check(name: str, got: list[np.ndarray], want: list[np.ndarray]) -> None:
    assert len(got) == len(want), name
    for k, (y, z) in enumerate(zip(got, want, strict=True)):
        assert (y.dtype, y.shape) == (z.dtype, z.shape), (name, k, y.dtype, y.shape, z.shape)
        both_nan = (y != y) & (z != z)
        wrong = (bits(y).reshape(y.shape) != bits(z).reshape(z.shape)) & ~both_nan
        assert not wrong.any(), (name, k, y[wrong][:3], z[wrong][:3])


def run_case(path: Path, levels: tuple[str, ...]) -> None:
    data = np.load(path.with_suffix(".npz"))
    feeds = {key[3:]: data[key] for key in data.files if key.startswith("in_")}
    want = [data[f"out_{k}"] for k in range(sum(key.startswith("out_") for key in data.files))]
    for level in levels:
        level_value = getattr(onnxruntime.GraphOptimizationLevel, level)
        for threads in (1, 2):
            one = session(path, threads=threads, graph_optimization_level=level_value)
            for _ in range(3):
                check(f"{path.stem} {level}", one.run(None, feeds), want)


def refused(model: Path, bundles: str | None) -> str:
    try:
        session(model, bundles)
    except Exception as error:
        return str(error)
    raise AssertionError(f"{bundles!r} was taken")


def many_threads(model: Path) -> None:
    data = np.load(model.with_suffix(".npz"))
    feeds = {key[3:]: data[key] for key in data.files if key.startswith("in_")}
    want = [data["out_0"]]
    sessions = [session(model) for _ in range(3)]
    failures: list[BaseException] = []

    def work(number: int) -> None:
        try:
            for _ in range(20):
                check("many threads", sessions[number % 3].run(None, feeds), want)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(k,)) for k in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures, failures[0]


def unload_and_again(model: Path) -> None:
    """onnxruntime closes the library after the last session; it must stay where it is."""
    for _ in range(3):
        one = session(model)
        del one
        gc.collect()
        with open("/proc/self/maps") as maps:
            assert LIBRARY in maps.read()


def main() -> None:
    models = sorted(Path(FOLDER).glob("*.onnx"))
    assert models
    for path in models:
        run_case(path, ("ORT_DISABLE_ALL", "ORT_ENABLE_ALL"))
        print("case", path.stem)
    large = Path(FOLDER) / "large.onnx"
    print("refused", refused(large, None))
    print("refused", refused(large, "/nowhere"))
    print("refused", refused(large, BUNDLE + "#" + "0" * 64))
    print("refused", refused(large, "\n"))
    many_threads(large)
    unload_and_again(large)
    print("done", onnxruntime.__version__)


if __name__ == "__main__":
    main()
