"""`relu_ops.interop.torch`: operators that train, wherever torch may call them.

Compared with torch's own operators, bit for bit where both round alike.
"""

from __future__ import annotations

import concurrent.futures
import copy
import functools
import importlib.util
import pickle
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import children
import numpy as np
import onnx.parser
import onnxruntime
import pytest
from cases import SPECIALS, compiled, random_array

from relu_ops import graphs
from relu_ops.errors import ArgumentError, ArgumentTypeError

if importlib.util.find_spec("torch") is None:
    pytest.skip("torch is not installed: pip install 'relu_ops[torch]'", allow_module_level=True)

import torch

from relu_ops.interop import torch as ours

functional = torch.nn.functional

Function = Callable[..., Any]


def model_of(text: str) -> onnx.ModelProto:
    return onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : 18]>\n{text}')


def rounded(slope: float) -> float:
    """A slope that is the same in float32 and in float64."""
    return float(np.float32(slope))


PAIRS: dict[str, tuple[Function, Function]] = {
    "relu": (ours.relu, torch.relu),
    "leaky_relu": (ours.leaky_relu, lambda x: functional.leaky_relu(x, rounded(0.01))),
    "leaky_relu 0.25": (
        lambda x: ours.leaky_relu(x, 0.25),
        lambda x: functional.leaky_relu(x, 0.25),
    ),
    "leaky_relu -0.5": (
        lambda x: ours.leaky_relu(x, -0.5),
        lambda x: functional.leaky_relu(x, -0.5),
    ),
    "leaky_relu 0": (lambda x: ours.leaky_relu(x, 0.0), lambda x: functional.leaky_relu(x, 0.0)),
}


@pytest.fixture(scope="module")
def chain() -> Any:
    return ours.wrap(graphs.scale_bias_leaky_relu(alpha=0.25, dtype="float64"))


def same_chain(x: Any, scale: Any, bias: Any) -> Any:
    return functional.leaky_relu(x * scale + bias, 0.25)


def chain_inputs(requires_grad: bool = True, dtype: Any = torch.float64) -> tuple[Any, ...]:
    torch.manual_seed(0)
    shapes = ((4, 3), (3,), (3,))
    return tuple(torch.randn(s, dtype=dtype, requires_grad=requires_grad) for s in shapes)


# ---------------------------------------------------------------- the numbers


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", PAIRS)
def test_values_and_gradients_are_those_of_torch(name: str, dtype: str) -> None:
    function, theirs = PAIRS[name]
    numbers = random_array(np.random.default_rng(0), dtype, (3000,))
    dy = torch.from_numpy(random_array(np.random.default_rng(1), dtype, (3000,)))
    numbers = numbers[~np.isnan(numbers)]  # torch passes dy on at a NaN
    if "-0.5" in name:  # torch multiplies a zero by the slope, and flips its sign
        numbers = numbers[numbers != 0]
    found = []
    for one in (function, theirs):
        x = torch.from_numpy(numbers.copy()).requires_grad_()
        y = one(x)
        y.backward(dy[: len(numbers)])
        found.append((y.detach(), x.grad))
    for a, b in zip(*found, strict=True):
        kept = ~torch.isnan(b)
        assert torch.equal(torch.isnan(a), torch.isnan(b))
        bits = torch.int32 if dtype == "float32" else torch.int64
        assert torch.equal(a.view(bits)[kept], b.view(bits)[kept])


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_narrow_floats(dtype: str) -> None:
    x = torch.randn(100).to(getattr(torch, dtype)).requires_grad_()
    y = ours.relu(x)
    y.sum().backward()
    assert torch.equal(y, torch.relu(x)) and torch.equal(x.grad, (x > 0).to(x.dtype))


def test_integers() -> None:
    assert ours.relu(torch.tensor([-1, 2])).tolist() == [0, 2]
    with pytest.raises(ArgumentTypeError, match=r"leaky_relu: x.dtype must be one of float16"):
        ours.leaky_relu(torch.tensor([-1, 2]))


@pytest.mark.parametrize("name", PAIRS)
def test_gradcheck(name: str) -> None:
    function, _ = PAIRS[name]
    torch.manual_seed(0)
    x = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        function,
        (x,),
        check_forward_ad=True,
        check_batched_grad=True,
        check_batched_forward_grad=True,
    )
    assert torch.autograd.gradgradcheck(function, (x,), check_fwd_over_rev=True)


def test_gradcheck_of_a_chain(chain: Any) -> None:
    inputs = chain_inputs()
    assert torch.autograd.gradcheck(
        chain,
        inputs,
        check_forward_ad=True,
        check_batched_grad=True,
        check_batched_forward_grad=True,
    )
    assert torch.autograd.gradgradcheck(
        chain, inputs, check_fwd_over_rev=True, check_rev_over_rev=True
    )


# ---------------------------------------------------------------- torch.func

func = torch.func


def cubed(function: Function) -> Function:
    return lambda *inputs: (function(*inputs) ** 3).sum()


TRANSFORMS: dict[str, Function] = {
    "grad": lambda f, x: func.grad(cubed(f))(x),
    "vjp": lambda f, x: func.vjp(f, x)[1](x)[0],
    "jvp": lambda f, x: func.jvp(f, (x,), (x + 1,))[1],
    "vmap": lambda f, x: func.vmap(f)(torch.stack([x, -x])),
    "vmap along another axis": lambda f, x: func.vmap(f, 1)(torch.stack([x, -x, x], 1)),
    "vmap of grad": lambda f, x: func.vmap(func.grad(cubed(f)))(torch.stack([x, -x])),
    "vmap of vmap": lambda f, x: func.vmap(func.vmap(f))(torch.stack([x, -x])),
    "hessian": lambda f, x: func.hessian(cubed(f))(x),
    "jacrev": lambda f, x: func.jacrev(f)(x),
    "jacfwd": lambda f, x: func.jacfwd(f)(x),
    "grad of grad": lambda f, x: func.grad(lambda v: func.grad(cubed(f))(v).sum())(x),
    "jvp of grad": lambda f, x: func.jvp(func.grad(cubed(f)), (x,), (x,))[1],
    "vmap of hessian": lambda f, x: func.vmap(func.hessian(cubed(f)))(torch.stack([x, -x])),
}


@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("name", PAIRS)
def test_transformations(name: str, transform: str) -> None:
    torch.manual_seed(0)
    x = torch.randn(7, dtype=torch.float64)
    a, b = (TRANSFORMS[transform](function, x) for function in PAIRS[name])
    assert a.shape == b.shape and torch.equal(a, b)
    assert not torch.equal(b, torch.zeros_like(b))


CHAIN_TRANSFORMS: dict[str, Function] = {
    "grad": lambda f, x, s, b: func.grad(cubed(f), (0, 1, 2))(x, s, b),
    "vmap of grad": lambda f, x, s, b: func.vmap(func.grad(cubed(f), (0, 1, 2)), (0, 0, None))(
        torch.stack([x, -x]), torch.stack([s, 2 * s]), b
    ),
    "vmap of one": lambda f, x, s, b: func.vmap(f, (None, 1, None))(
        x, torch.stack([s, 2 * s], 1), b
    ),
    "hessian": lambda f, x, s, b: func.hessian(cubed(f), 1)(x, s, b),
    "jvp of all": lambda f, x, s, b: func.jvp(f, (x, s, b), (x, s, b)),
    "jvp of one": lambda f, x, s, b: func.jvp(lambda v: f(x, v, b), (s,), (s,)),
    "jacfwd": lambda f, x, s, b: func.jacfwd(f, 2)(x, s, b),
}


@pytest.mark.parametrize("transform", CHAIN_TRANSFORMS)
def test_transformations_of_a_chain(chain: Any, transform: str) -> None:
    inputs = chain_inputs(requires_grad=False)
    made = [CHAIN_TRANSFORMS[transform](f, *inputs) for f in (chain, same_chain)]
    a, b = ((m,) if isinstance(m, torch.Tensor) else m for m in made)
    for one, other in zip(a, b, strict=True):
        assert one.shape == other.shape and torch.allclose(one, other, rtol=1e-12)


# ---------------------------------------------------------------- compilers, exporters


@pytest.mark.parametrize("name", ["relu", "leaky_relu 0.25", "chain"])
def test_opcheck(chain: Any, name: str) -> None:
    x = torch.randn(3, 4, requires_grad=True)
    operators: dict[str, tuple[Any, tuple[Any, ...]]] = {
        "relu": (torch.ops.relu_ops.relu.default, (x,)),
        "leaky_relu 0.25": (torch.ops.relu_ops.leaky_relu.default, (x, 0.25)),
        "chain": (chain.op, chain_inputs()),
    }
    results = torch.library.opcheck(*operators[name])
    assert set(results.values()) == {"SUCCESS"}


def network() -> Any:
    torch.manual_seed(0)
    return torch.nn.Sequential(
        torch.nn.Linear(8, 16),
        torch.nn.ReLU(),
        torch.nn.Linear(16, 16),
        torch.nn.LeakyReLU(0.1, inplace=True),
        torch.nn.Linear(16, 4),
        torch.nn.PReLU(4),
    )


@pytest.fixture
def swapped() -> Iterator[tuple[Any, Any]]:
    """A network, and the same with our activations."""
    plain = network()
    other = copy.deepcopy(plain)
    assert ours.replace(other) == ["1: ReLU", "3: LeakyReLU", "5: PReLU"]
    yield plain, other


def test_compiled_without_a_graph_break(swapped: tuple[Any, Any]) -> None:
    plain, other = swapped
    torch._dynamo.reset()
    both = torch.compile(other, fullgraph=True, dynamic=True)
    for rows in (3, 5, 9):
        x = torch.randn(rows, 8)
        y, wanted = both(x), plain(x)
        assert torch.allclose(y, wanted, atol=1e-6)
        other.zero_grad()
        plain.zero_grad()
        y.sum().backward()
        wanted.sum().backward()
        for p, q in zip(other.parameters(), plain.parameters(), strict=True):
            assert torch.allclose(p.grad, q.grad, atol=1e-5)


def test_other_shapes_compile_nothing_anew() -> None:
    from torch._dynamo.testing import CompileCounter

    torch._dynamo.reset()
    counter = CompileCounter()
    made = torch.compile(
        lambda x: ours.relu(ours.leaky_relu(x, 0.2)), fullgraph=True, backend=counter, dynamic=True
    )
    for rows in (4, 5, 6):
        made(torch.randn(rows, 3))
    assert counter.frame_count == 1


def test_exported(swapped: tuple[Any, Any]) -> None:
    plain, other = swapped
    x = torch.randn(5, 8)
    program = torch.export.export(other, (x,), dynamic_shapes=({0: torch.export.Dim("rows")},))
    targets = [str(n.target) for n in program.graph.nodes if "relu_ops" in str(n.target)]
    assert len(targets) == 3 and targets[0] == "relu_ops.relu.default"
    more = torch.randn(9, 8)
    assert torch.equal(program.module()(more), plain(more))


def test_exported_to_onnx_as_plain_operators(swapped: tuple[Any, Any]) -> None:
    plain, other = swapped
    x = torch.randn(5, 8)
    other(x)  # so that what is wrapped is known
    program = torch.onnx.export(
        other.eval(),
        (x,),
        dynamo=True,
        custom_translation_table=ours.onnx_table(),
        opset_version=18,
        verbose=False,
    )
    operators = [node.op_type for node in program.model_proto.graph.node]
    assert operators == ["Gemm", "Relu", "Gemm", "LeakyRelu", "Gemm", "PRelu"]
    session = onnxruntime.InferenceSession(program.model_proto.SerializeToString())
    (y,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    assert np.allclose(y, plain(x).detach(), atol=1e-5)


def test_ahead_of_time_by_inductor(swapped: tuple[Any, Any], tmp_path: Path) -> None:
    plain, other = swapped
    x = torch.randn(5, 8)
    with torch.no_grad():
        program = torch.export.export(other, (x,))
        path = torch._inductor.aoti_compile_and_package(
            program, package_path=str(tmp_path / "network.pt2")
        )
        assert torch.allclose(torch._inductor.aoti_load_package(path)(x), plain(x), atol=1e-6)


# ---------------------------------------------------------------- modules


def test_modules_train_as_torchs_do(swapped: tuple[Any, Any]) -> None:
    plain, other = swapped
    x = torch.randn(32, 8)
    for one in swapped:
        optimizer = torch.optim.SGD(one.parameters(), 0.1)
        for _ in range(5):
            optimizer.zero_grad()
            (one(x) ** 2).mean().backward()
            optimizer.step()
    for p, q in zip(plain.parameters(), other.parameters(), strict=True):
        assert torch.equal(p, q)
    plain.load_state_dict(other.state_dict())
    other.load_state_dict(plain.state_dict())


def test_copies_and_pickles(swapped: tuple[Any, Any], chain: Any) -> None:
    _, other = swapped
    x = torch.randn(5, 8)
    for again in (copy.deepcopy(other), pickle.loads(pickle.dumps(other))):
        assert torch.equal(again(x), other(x))
    assert pickle.loads(pickle.dumps(chain)) is chain and copy.deepcopy(chain) is chain


def test_prelu_of_channels() -> None:
    plain = torch.nn.PReLU(3)
    plain.weight.data = torch.tensor([0.1, -0.5, 2.0])
    other = copy.deepcopy(plain)
    ours.replace(other)
    for shape in ((2, 3), (2, 3, 4), (2, 3, 4, 5)):
        x = torch.randn(shape)
        a, b = plain(x), other(x)
        assert torch.equal(a, b)
        plain.zero_grad()
        other.zero_grad()
        a.sum().backward()
        b.sum().backward()
        assert torch.allclose(plain.weight.grad, other.weight.grad)


def test_in_place() -> None:
    module = ours.ReLU(inplace=True)
    x = torch.tensor([-1.0, 2.0])
    assert module(x) is x and x.tolist() == [0, 2]
    leaf = torch.tensor([-1.0, 2.0], requires_grad=True)
    y = leaf * 1
    assert module(y) is y
    y.sum().backward()
    assert leaf.grad.tolist() == [0, 1]
    with pytest.raises(RuntimeError, match="leaf Variable that requires grad"):
        module(leaf)


def test_replace_changes_exactly_torchs_own() -> None:
    class Own(torch.nn.ReLU):
        """Somebody's."""

    network = torch.nn.ModuleDict({"a": Own(), "b": torch.nn.ReLU(), "c": torch.nn.ReLU6()})
    assert ours.replace(network) == ["b: ReLU"]
    assert type(network["a"]) is Own and type(network["b"]) is ours.ReLU
    assert isinstance(network["b"], torch.nn.ReLU)
    assert ours.replace(network) == []
    with pytest.raises(ArgumentTypeError, match=r"replace: module must be a torch.nn.Module"):
        ours.replace(torch.relu)


# ---------------------------------------------------------------- what torch may hand over


def test_channels_last_stays() -> None:
    x = torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last).requires_grad_()
    for function in (ours.relu, lambda v: ours.leaky_relu(v, 0.25)):
        y = function(x)
        assert y.is_contiguous(memory_format=torch.channels_last)
        (grad,) = torch.autograd.grad(y.sum(), x)
        slope = 0.0 if function is ours.relu else 0.25
        assert torch.equal(grad, torch.where(x > 0, 1.0, slope))
        assert grad.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("shape", [(0,), (0, 3), (3, 0)])
def test_zero_sizes(shape: tuple[int, ...]) -> None:
    x = torch.empty(shape, requires_grad=True)
    ours.relu(x).sum().backward()
    assert x.grad.shape == shape


def test_strides_and_repeated_gradients(chain: Any) -> None:
    x, scale, bias = chain_inputs()
    for given in (x.T.contiguous().T, x[::2], x[:1].expand(5, 3)):
        assert torch.equal(chain(given, scale, bias), same_chain(given, scale, bias))
    a, b = (torch.autograd.grad(f(x, scale, bias).sum(), x)[0] for f in (chain, same_chain))
    assert torch.equal(a, b)


def test_meta_and_fake(chain: Any) -> None:
    assert ours.relu(torch.empty(3, 4, device="meta")).shape == (3, 4)
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        y = chain(*(torch.empty(s, dtype=torch.float64) for s in ((4, 3), (3,), (3,))))
    assert y.shape == (4, 3) and y.dtype == torch.float64


def test_autocast(chain: Any) -> None:
    """relu keeps its dtype, as torch's; a graph gets the dtypes that it declares."""
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert ours.relu(torch.ones(2)).dtype == torch.float32
        given = chain_inputs(False, torch.float32)
        mixed = (given[0].bfloat16(), *given[1:])
        assert chain(*mixed).dtype == torch.float64


def test_a_hook_and_a_checkpoint() -> None:
    x = torch.randn(4, requires_grad=True)
    seen: list[Any] = []
    y = ours.relu(x * 1)
    y.register_hook(lambda g: seen.append(g))
    torch.utils.checkpoint.checkpoint(ours.relu, y, use_reentrant=False).sum().backward()
    assert len(seen) == 1 and torch.equal(x.grad, (x > 0).float())


def test_the_profiler_sees_names(chain: Any) -> None:
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        ours.relu(torch.ones(3))
        chain(*chain_inputs())
    names = {event.key for event in profile.key_averages()}
    assert {"relu_ops::relu", f"relu_ops::{chain.name}"} <= names


def test_under_no_grad_nothing_is_recorded(chain: Any) -> None:
    x = torch.randn(3, requires_grad=True)
    with torch.no_grad():
        assert not ours.relu(x).requires_grad and not chain(*chain_inputs()).requires_grad
    assert ours.relu(x).requires_grad and not ours.relu(x.detach()).requires_grad


def test_a_leaf_stays_a_leaf() -> None:
    x = torch.nn.Parameter(torch.randn(3))
    ours.relu(x)
    assert x.is_leaf and x.requires_grad and x.grad_fn is None


# ---------------------------------------------------------------- wrap


def test_one_graph_is_one_operator() -> None:
    assert ours.wrap(graphs.relu6()) is ours.wrap(graphs.relu6())
    names = {ours.wrap(graphs.thresholded_relu(alpha=a)).name for a in (1, 2)}
    assert len(names) == 2 and "thresholded_relu" in {n[:16] for n in names}


def test_an_operator_and_a_bundle(tmp_path: Path) -> None:
    from relu_ops import build

    model = graphs.leaky_relu(alpha=0.5)
    build(model, ["native"], tmp_path / "leaky.bundle")
    for given in (
        compiled(model, "native"),
        tmp_path / "leaky.bundle",
        str(tmp_path / "leaky.bundle"),
    ):
        function = ours.wrap(given)
        x = torch.tensor([-2.0, 3.0], requires_grad=True)
        y = function(x)
        y.sum().backward()
        assert y.tolist() == [-1, 3] and x.grad.tolist() == [0.5, 1]


def test_several_outputs_and_integers() -> None:
    text = """g (float[N] x, float[N] z) => (float[N] y, bool[N] m, float[N] w) {
      y = Mul(x, z)  m = Less(x, z)  w = Neg(z) }"""
    function = ours.wrap(model_of(text))
    x, z = torch.randn(5, requires_grad=True), torch.randn(5, requires_grad=True)
    y, m, w = function(x, z)
    assert m.dtype == torch.bool and not m.requires_grad
    (y.sum() + 2 * w.sum()).backward()
    assert torch.equal(x.grad, z) and torch.equal(z.grad, x - 2)
    x.grad = z.grad = None
    function(x, z)[2].sum().backward()
    assert torch.equal(z.grad, -torch.ones(5)) and torch.equal(x.grad, torch.zeros(5))
    tangents = func.jvp(lambda v: function(v, z.detach()), (x.detach(),), (torch.ones(5),))[1]
    assert torch.equal(tangents[0], z.detach()) and torch.equal(tangents[2], torch.zeros(5))


def refused(kind: type[Exception], message: str, call: Callable[[], Any]) -> None:
    with pytest.raises(kind, match=f"^{re.escape(message)}$"):
        call()


def test_a_gradient_is_never_lost() -> None:
    text = """quantized (float[N] x) => (float[N] y) <float s = {0.5}, int8 z = {0}> {
      q = QuantizeLinear(x, s, z)  y = DequantizeLinear(q, s, z) }"""
    function = ours.wrap(model_of(text))
    x = torch.tensor([0.4, 1.3], requires_grad=True)
    assert function(x.detach()).tolist() == [0.5, 1.5]
    message = (
        f"{function.name}: x requires a gradient and has none: every path to an output goes "
        "through integers, booleans or operators without a derivative\n"
        "hint: pass x.detach(); quantized chains have wrap(..., straight_through=True)"
    )
    refused(ArgumentError, message, lambda: function(x))
    ours.wrap(model_of(text), straight_through=True)(x).sum().backward()
    assert x.grad.tolist() == [1, 1]


def test_arguments(chain: Any) -> None:
    refused(
        ArgumentTypeError,
        f"{chain.name} takes 3 tensors (x, scale, bias), not 1",
        lambda: chain(torch.ones(2, 2, requires_grad=True, dtype=torch.float64)),
    )
    x, scale, _ = chain_inputs()
    refused(
        ArgumentTypeError,
        f"{chain.name}: bias must be a tensor (not float)\n"
        "hint: for example torch.as_tensor makes one",
        lambda: chain(x, scale, 1.0),
    )


def test_names_that_torch_cannot_take() -> None:
    model = graphs.relu()
    model.graph.input[0].name = model.graph.node[0].input[0] = "a name"
    with pytest.raises(ArgumentError, match="wrap: torch takes no such names of inputs: a name"):
        ours.wrap(model)


def test_a_graph_without_inputs() -> None:
    refused(
        ArgumentError,
        "wrap: g must have an input (it has none)\n"
        "hint: its results are constants: compute them once, with relu_ops.compile or load",
        lambda: ours.wrap(model_of("g () => (float[1] y) <float[1] c = {1}> { y = Relu(c) }")),
    )


def test_rank_is_kept_where_a_graph_depends_on_it() -> None:
    """Under vmap such a graph runs once an element of the batch."""
    text = """g (int8[2, N] x) => (float[2, N] y) <float[2] s = {0.5, 2}, int8[2] z = {0, 1}> {
      y = DequantizeLinear <axis = 0> (x, s, z) }"""
    function = ours.wrap(model_of(text))
    assert function.any_rank() is None
    x = torch.randint(-9, 9, (3, 2, 4), dtype=torch.int8)
    wanted = torch.stack([function(one) for one in x])
    assert torch.equal(func.vmap(function)(x), wanted)


# ---------------------------------------------------------------- several processes

RANK = """
import copy, os, sys
import torch
from relu_ops.interop import torch as ours

rank, meeting = int(sys.argv[1]), sys.argv[2]
os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
torch.set_num_threads(1)
torch.distributed.init_process_group("gloo", f"file://{meeting}", rank=rank, world_size=2)
torch.manual_seed(0)
plain = torch.nn.Sequential(
    torch.nn.Linear(8, 16),
    torch.nn.ReLU(),
    torch.nn.Linear(16, 16),
    torch.nn.LeakyReLU(0.1, inplace=True),
    torch.nn.Linear(16, 4),
    torch.nn.PReLU(4),
)
other = copy.deepcopy(plain)
assert len(ours.replace(other)) == 3
both = [torch.nn.parallel.DistributedDataParallel(one) for one in (plain, other)]
steps = [torch.optim.SGD(one.parameters(), 0.1) for one in both]
generator = torch.Generator().manual_seed(rank)
for _ in range(3):
    x = torch.randn(32, 8, generator=generator)  # of this process alone
    for network, step in zip(both, steps):
        step.zero_grad()
        (network(x) ** 2).mean().backward()
    for p, q in zip(plain.parameters(), other.parameters(), strict=True):
        assert torch.equal(p.grad, q.grad) and p.grad.abs().sum() > 0
        everywhere = [torch.empty_like(q.grad) for _ in range(2)]
        torch.distributed.all_gather(everywhere, q.grad)
        assert torch.equal(*everywhere)
    alone = copy.deepcopy(other)
    alone.zero_grad()
    (alone(x) ** 2).mean().backward()
    assert not torch.equal(alone[0].weight.grad, other[0].weight.grad)  # it was a mean over both
    for step in steps:
        step.step()
torch.distributed.destroy_process_group()
print("trained")
"""


def test_two_processes_train_as_with_torchs_own(tmp_path: Path) -> None:
    if not torch.distributed.is_available() or not torch.distributed.is_gloo_available():
        pytest.skip("this torch was built without gloo")
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        ranks = [pool.submit(children.run, RANK, k, tmp_path / "meeting") for k in range(2)]
        for rank in ranks:
            done = rank.result()
            assert (done.returncode, done.stdout) == (0, "trained\n"), done.stderr


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_compiled_code_has_the_same_bits(dtype: str) -> None:
    """Inductor writes some of it itself: every special value, and its gradient."""
    from torch._inductor.utils import fresh_cache

    x = torch.from_numpy(SPECIALS[dtype].astype(np.float32)).to(getattr(torch, dtype))
    if dtype in ("float32", "float64"):
        x = torch.from_numpy(SPECIALS[dtype].copy())
    dy = torch.from_numpy(random_array(np.random.default_rng(1), "float32", tuple(x.shape)))
    dy = torch.nan_to_num(dy, 1.0).to(x.dtype)

    def both(function: Function, x: Any) -> tuple[Any, Any]:
        x = x.clone().requires_grad_()
        y = function(x)
        return y.detach(), torch.autograd.grad(y, x, dy)[0]

    slopes = (0.3, 1.0, 2.0, 0.0, -0.3)
    for eager in (
        ours.relu,
        *(functools.partial(ours.leaky_relu, negative_slope=s) for s in slopes),
    ):
        torch._dynamo.reset()
        made = torch.compile(lambda x, eager=eager: eager(x), fullgraph=True)
        with fresh_cache():  # what an earlier release wrote would be taken
            results = both(made, x)
        for one, other in zip(results, both(eager, x), strict=True):
            kept = ~torch.isnan(other)
            assert torch.equal(torch.isnan(one), ~kept)
            bits = {2: torch.int16, 4: torch.int32, 8: torch.int64}[x.itemsize]
            assert torch.equal(one.view(bits)[kept], other.view(bits)[kept])


def test_what_inductor_writes_and_what_it_calls() -> None:
    from torch._inductor.utils import fresh_cache, run_and_get_code

    def code_of(x: Any) -> str:
        torch._dynamo.reset()
        made = torch.compile(lambda x: ours.leaky_relu(x * 2, 0.3) + 1, fullgraph=True)
        with fresh_cache():  # what an earlier release wrote would be taken
            y, codes = run_and_get_code(made, x)
        assert torch.equal(y, ours.leaky_relu(x * 2, 0.3) + 1)
        return "".join(codes)

    called = "torch.ops.relu_ops.leaky_relu.default("
    assert called not in code_of(torch.randn(1000))
    assert called in code_of(torch.randn(1000).bfloat16())
    assert called in code_of(torch.randn(9 * 2**20))
