"""What is told to logging, and that nothing is ever printed."""

from __future__ import annotations

import logging
import re
from pathlib import Path

import children
import pytest

import relu_ops
from relu_ops import log, targets

_ALL = """
import sys
import numpy as np, relu_ops
from relu_ops import graphs
relu_ops.build({"act": graphs.relu(), "leaky": graphs.leaky_relu()}, ["x86-64-v2"], sys.argv[1])
op = relu_ops.load(sys.argv[1], name="act")
x = np.float32([-1, 2])
assert op(x).tolist() == [0, 2]
op.bind(x)()
for _ in range(2):
    relu_ops.compile(graphs.leaky_relu(alpha=0.25), "x86-64-v2")(x)
relu_ops.compile(graphs.relu())
relu_ops.relu(x)
"""
_LISTENS = 'import logging; logging.basicConfig(level="DEBUG", format="%(name)s %(message)s")\n'


def test_nothing_is_printed(tmp_path: Path) -> None:
    code = f"{_ALL}\nimport logging\nrelu_ops.relu(np.float64(x))"
    done = children.run(code, tmp_path / "b", RELU_OPS_CACHE=str(tmp_path / "cache"))
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_what_is_logged(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    done = children.run(_LISTENS + _ALL, tmp_path / "b", RELU_OPS_CACHE=str(cache))
    assert (done.returncode, done.stdout) == (0, "")
    said = [line for line in done.stderr.splitlines() if line.startswith("relu_ops ")]
    best, entry = re.escape(str(targets.native())), rf"compile cache: {cache}/[0-9a-f]{{64}}"
    wanted = [
        r"compiled act, leaky for x86-64-v2 in \d+ ms",
        rf"load: act of {tmp_path}/b: target x86-64-v2: the best .*",
        "compile: target x86-64-v2: asked for by name",
        f"{entry} is missing, and is made",
        r"compiled leaky_relu for x86-64-v2 in \d+ ms",
        "compile: target x86-64-v2: asked for by name",
        f"{entry} is there",
        f"compile: target {best}: the best for .*",
        f"{entry} is missing, and is made",
        rf"compiled relu for {best} in \d+ ms",
        f"compile: target {best}: the best for .*",
        f"{entry} is missing, and is made",
        rf"compiled relu for {best} in \d+ ms",
    ]
    assert len(said) == len(wanted), said
    for line, pattern in zip(said, wanted, strict=True):
        assert re.fullmatch(f"relu_ops {pattern}", line), (line, pattern)


def test_running_imports_no_logging(tmp_path: Path) -> None:
    relu_ops.build(relu_ops.graphs.relu(), ["x86-64-v2"], tmp_path / "b")
    code = """
import sys
sys.modules["logging"] = None  # importing it fails
import numpy as np
if "logging" in sys.modules: del sys.modules["logging"]
import relu_ops
op = relu_ops.load(sys.argv[1])
op(np.float32([1])), op([1.0])
print("logging" in sys.modules)
"""
    done = children.run(code, tmp_path / "b")
    assert (done.stdout, done.stderr) == ("False\n", "")


def test_messages_are_of_who_says_them(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "relu_ops")
    log.say("INFO", "%s and %s", 1, "two")
    (record,) = caplog.records
    assert (record.name, record.levelname, record.getMessage()) == ("relu_ops", "INFO", "1 and two")
    assert record.funcName == "test_messages_are_of_who_says_them"
    assert log.hears("DEBUG")


def test_the_logger_has_one_handler_that_does_nothing() -> None:
    code = """
import logging
from relu_ops import log
for _ in range(3):
    log.say("WARNING", "unheard")
print(logging.getLogger("relu_ops").handlers, log.hears("DEBUG"))
"""
    done = children.run(code)
    assert (done.stdout, done.stderr) == ("[<NullHandler (NOTSET)>] False\n", "")


def test_why_names_every_better_target() -> None:
    machine = targets.Machine("x86_64", "Some CPU", frozenset(targets.TARGETS["x86-64-v2"].flags))
    why = targets.why(targets.TARGETS["x86-64-v2"], "native", machine)
    assert why.startswith("the best for Some CPU; x86-64-v3: the processor or its operating system")
    assert "; x86-64-v4: " in why
