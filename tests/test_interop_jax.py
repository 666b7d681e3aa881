"""`relu_ops.interop.jax`: operators that train, wherever JAX may call them."""

from __future__ import annotations

import copy
import importlib.util
import pickle
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import children
import numpy as np
import onnx.parser
import pytest
from cases import SPECIALS, compiled, expected, same_bits

from relu_ops import graphs
from relu_ops.errors import ArgumentError, ArgumentTypeError

if importlib.util.find_spec("jax") is None:
    pytest.skip("JAX is not installed: pip install 'relu_ops[jax]'", allow_module_level=True)

import jax
import jax.numpy as jnp

from relu_ops.interop import jax as ours

Function = Callable[..., Any]


@pytest.fixture(autouse=True, scope="module")
def doubles() -> Iterator[None]:
    before = jax.config.jax_enable_x64
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", before)


def model_of(text: str) -> onnx.ModelProto:
    return onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : 18]>\n{text}')


@pytest.fixture(scope="module")
def chain() -> Any:
    return ours.wrap(graphs.scale_bias_leaky_relu(alpha=0.25, dtype="float64"))


def same_leaky(x: Any) -> Any:
    return jnp.where(x > 0, x, 0.25 * x)


def same_chain(x: Any, scale: Any, bias: Any) -> Any:
    return same_leaky(x * scale + bias)


def inputs() -> tuple[Any, ...]:
    rng = np.random.default_rng(0)
    return tuple(jnp.asarray(rng.standard_normal(s)) for s in ((4, 3), (3,), (3,)))


def cubed(function: Function) -> Function:
    return lambda *given: (function(*given) ** 3).sum()


# ---------------------------------------------------------------- the numbers


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
@pytest.mark.parametrize("graph", ["relu", "leaky_relu"])
def test_every_special_value_inside_jit(graph: str, dtype: str) -> None:
    """NaN, -0.0, and subnormals, which XLA takes for zero in operators of its own."""
    x = SPECIALS[dtype]
    function = getattr(ours, graph)
    (wanted,) = expected(getattr(graphs, graph)(dtype=dtype), [x])
    for call in (function, jax.jit(function)):
        y = np.asarray(call(jnp.asarray(x)))
        assert y.dtype == x.dtype and same_bits(y, wanted)


def test_gradients_are_those_of_jax() -> None:
    x = jnp.asarray(np.random.default_rng(0).standard_normal(1000))
    dy = x[::-1]
    for function, theirs in (
        (ours.relu, jax.nn.relu),
        (lambda v: ours.leaky_relu(v, 0.25), lambda v: jax.nn.leaky_relu(v, 0.25)),
    ):
        a, b = (jax.jit(lambda v, f=f: jax.vjp(f, v)[1](dy)[0])(x) for f in (function, theirs))
        assert jnp.array_equal(a, b)
    assert (
        jax.grad(ours.relu)(0.0) == 0 and jax.grad(lambda v: ours.leaky_relu(v, 0.25))(0.0) == 0.25
    )


TRANSFORMS: dict[str, Function] = {
    "grad": lambda f, x: jax.grad(cubed(f))(x),
    "jit of grad": lambda f, x: jax.jit(jax.grad(cubed(f)))(x),
    "jvp": lambda f, x: jax.jvp(f, (x,), (x + 1,))[1],
    "vmap": lambda f, x: jax.vmap(f, 1, 1)(jnp.stack([x, -x], 1)),
    "vmap of grad": lambda f, x: jax.vmap(jax.grad(cubed(f)))(jnp.stack([x, -x])),
    "hessian": lambda f, x: jax.hessian(cubed(f))(x),
    "grad of grad": lambda f, x: jax.grad(lambda v: jax.grad(cubed(f))(v).sum())(x),
    "a third derivative": lambda f, x: jax.grad(
        lambda v: jax.grad(lambda u: jax.grad(cubed(f))(u).sum())(v).sum()
    )(x),
    "jacfwd": lambda f, x: jax.jacfwd(f)(x),
    "jacrev": lambda f, x: jax.jacrev(f)(x),
    "linearize": lambda f, x: jax.linearize(f, x)[1](x),
    "checkpoint": lambda f, x: jax.grad(cubed(jax.checkpoint(f)))(x),
}


@pytest.mark.parametrize("transform", TRANSFORMS)
def test_transformations(transform: str) -> None:
    x = jnp.linspace(-1.0, 1.0, 8)
    a, b = (TRANSFORMS[transform](f, x) for f in (lambda v: ours.leaky_relu(v, 0.25), same_leaky))
    assert a.shape == b.shape and jnp.allclose(a, b, rtol=1e-12)
    assert jnp.any(b != 0)


CHAIN_TRANSFORMS: dict[str, Function] = {
    "values": lambda f, x, s, b: f(x, s, b),
    "grad": lambda f, x, s, b: jax.grad(cubed(f), (0, 1, 2))(x, s, b),
    "vmap of grad": lambda f, x, s, b: jax.vmap(jax.grad(cubed(f), (0, 1, 2)), (0, 1, None))(
        jnp.stack([x, -x]), jnp.stack([s, 2 * s], 1), b
    ),
    "vmap of one": lambda f, x, s, b: jax.vmap(f, (None, 0, None))(x, jnp.stack([s, 2 * s]), b),
    "hessian": lambda f, x, s, b: jax.hessian(cubed(f), 1)(x, s, b),
    "jvp of all": lambda f, x, s, b: jax.jvp(f, (x, s, b), (x, s, b)),
    "jvp of one": lambda f, x, s, b: jax.jvp(lambda v: f(x, v, b), (s,), (s,)),
}


@pytest.mark.parametrize("transform", CHAIN_TRANSFORMS)
def test_transformations_of_a_chain(chain: Any, transform: str) -> None:
    made = [CHAIN_TRANSFORMS[transform](f, *inputs()) for f in (chain, same_chain)]
    for a, b in zip(*map(jax.tree.leaves, made), strict=True):
        assert a.shape == b.shape and jnp.allclose(a, b, rtol=1e-12)


def test_numerical_gradients(chain: Any) -> None:
    from jax.test_util import check_grads

    check_grads(chain, inputs(), 2)


# ---------------------------------------------------------------- programs


EXPORTED = """
import sys, jax, numpy as np
jax.config.update("jax_enable_x64", True)
from jax import export
from relu_ops import graphs
from relu_ops.interop import jax as ours
ours.wrap(graphs.scale_bias_leaky_relu(alpha=0.25, dtype="float64")).any_rank().registered()
program = export.deserialize(open(sys.argv[1], "rb").read())
x, ones = np.array([[-4.0, 1.0, 0.0]]), np.ones(3)
print(np.asarray(program.call(x, ones, ones)).tolist())
"""


def test_exported_and_called_in_another_process(chain: Any, tmp_path: Path) -> None:
    from jax import export

    (rows,) = export.symbolic_shape("rows")
    allowed = [export.DisabledSafetyCheck.custom_call(ours.TARGET)]
    _, scale, bias = inputs()
    shape = jax.ShapeDtypeStruct((rows, 3), scale.dtype)
    program = export.export(jax.jit(chain), disabled_checks=allowed)(shape, scale, bias)
    (tmp_path / "program").write_bytes(program.serialize())
    done = children.run(EXPORTED, str(tmp_path / "program"))
    assert done.stdout.strip() == "[[-0.75, 2.0, 1.0]]", done.stderr
    unknown = EXPORTED.replace(".any_rank().registered()", "")
    assert (
        "this process has no such operator"
        in children.run(unknown, str(tmp_path / "program")).stderr
    )


SHARDED = """
import jax, numpy as np, jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
from relu_ops import graphs
from relu_ops.interop import jax as ours
mesh = Mesh(np.array(jax.devices()), ("d",))
chain = ours.wrap(graphs.scale_bias_leaky_relu(alpha=0.25))
x = np.arange(-12, 12, dtype=np.float32).reshape(8, 3)
scale = bias = np.float32([1, 2, 3])
placed = jax.device_put(x, NamedSharding(mesh, P("d", None)))
wanted = np.asarray(chain(x, scale, bias))
y = jax.jit(chain)(placed, scale, bias)
assert y.sharding.spec[0] == "d", y.sharding
assert np.array_equal(y, wanted)
dx, ds = jax.jit(jax.grad(lambda *a: chain(*a).sum(), (0, 1)))(placed, scale, bias)
assert dx.sharding.spec[0] == "d" and ds.shape == (3,)
mapped = jax.shard_map(chain, mesh=mesh, in_specs=(P("d", None), P(), P()), out_specs=P("d", None))
assert np.array_equal(jax.jit(mapped)(x, scale, bias), wanted)
print("fine", len(jax.devices()))
"""


def test_sharded_arrays_stay_sharded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XLA_FLAGS", "--xla_force_host_platform_device_count=2")
    done = children.run(SHARDED)
    assert done.stdout.strip() == "fine 2", done.stderr


def test_donated() -> None:
    x = jnp.linspace(-1.0, 1.0, 1000)
    wanted = np.maximum(np.asarray(x), 0)
    assert np.array_equal(jax.jit(ours.relu, donate_argnums=0)(x), wanted)


def test_many_threads(chain: Any) -> None:
    from concurrent.futures import ThreadPoolExecutor

    x, scale, bias = inputs()
    call = jax.jit(chain)
    wanted = np.asarray(call(x, scale, bias))
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda _: np.asarray(call(x, scale, bias)), range(200)))
    assert all(np.array_equal(y, wanted) for y in made)


# ---------------------------------------------------------------- wrap


def test_copies_pickles_and_bundles(chain: Any, tmp_path: Path) -> None:
    from relu_ops import build

    assert pickle.loads(pickle.dumps(chain)) is chain and copy.deepcopy(chain) is chain
    model = graphs.leaky_relu(alpha=0.5)
    build(model, ["native"], tmp_path / "leaky.bundle")
    for given in (model, compiled(model, "native"), tmp_path / "leaky.bundle"):
        assert ours.wrap(given)(np.float32([-2, 3])).tolist() == [-1, 3]


def test_several_outputs_and_integers() -> None:
    text = """g (float[N] x, float[N] z) => (float[N] y, bool[N] m, float[N] w) {
      y = Mul(x, z)  m = Less(x, z)  w = Neg(z) }"""
    function = ours.wrap(model_of(text))
    x, z = np.float32([1, 2]), np.float32([3, -4])
    y, m, w = jax.jit(function)(x, z)
    assert (y.tolist(), m.tolist(), w.tolist()) == ([3, -8], [True, False], [-3, 4])
    dx, dz = jax.grad(lambda *a: function(*a)[0].sum() + 2 * function(*a)[2].sum(), (0, 1))(x, z)
    assert (dx.tolist(), dz.tolist()) == ([3, -4], [-1, 0])
    _, tangents = jax.jvp(lambda v: function(v, z), (x,), (x,))
    assert tangents[0].tolist() == [3, -8] and tangents[2].tolist() == [0, 0]


def test_a_batch_where_ranks_are_fixed() -> None:
    text = """g (int8[2, N] x) => (float[2, N] y) <float[2] s = {0.5, 2}, int8[2] z = {0, 1}> {
      y = DequantizeLinear <axis = 0> (x, s, z) }"""
    function = ours.wrap(model_of(text))
    assert function.any_rank() is None
    x = np.random.default_rng(0).integers(-9, 9, (3, 2, 4)).astype(np.int8)
    wanted = np.stack([function(one) for one in x])
    assert np.array_equal(jax.vmap(function)(x), wanted)


def refused(kind: type[Exception], message: str, call: Callable[[], Any]) -> None:
    with pytest.raises(kind, match=f"^{re.escape(message)}(\n-----|$)"):  # JAX adds a note
        call()


def test_refusals(chain: Any) -> None:
    x, scale, bias = inputs()
    refused(
        ArgumentTypeError,
        "scale_bias_leaky_relu takes 3 arrays (x, scale, bias), not 1",
        lambda: chain(x),
    )
    refused(
        ArgumentTypeError,
        "scale_bias_leaky_relu: x.dtype must be float64 (not float32)\n"
        "hint: convert it first, for example with x.astype('float64')",
        lambda: chain(x.astype("float32"), scale, bias),
    )
    with pytest.raises(ArgumentError, match=r"^scale_bias_leaky_relu: "):
        chain(x, scale[:2], bias)


def test_a_gradient_is_never_lost() -> None:
    text = """quantized (float[N] x) => (float[N] y) <float s = {0.5}, int8 z = {0}> {
      q = QuantizeLinear(x, s, z)  y = DequantizeLinear(q, s, z) }"""
    x = np.float32([0.4, 1.3])
    message = (
        "quantized: x requires a gradient and has none: every path to an output goes "
        "through integers, booleans or operators without a derivative\n"
        "hint: pass jax.lax.stop_gradient(x); quantized chains have "
        "wrap(..., straight_through=True)"
    )
    function = ours.wrap(model_of(text))
    refused(ArgumentError, message, lambda: jax.grad(lambda v: function(v).sum())(x))
    through = ours.wrap(model_of(text), straight_through=True)
    assert jax.grad(lambda v: through(v).sum())(x).tolist() == [1, 1]
