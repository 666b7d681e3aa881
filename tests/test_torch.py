"""Tensors of torch: torch in, torch out, the native way where a tensor is nothing but its memory.

What a tensor carries beyond its memory (a gradient, a pending negation, a transformation) is
resolved or refused, never lost.
"""

from __future__ import annotations

import functools
import gc
import importlib
import importlib.util
import re
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any

import children
import ml_dtypes
import numpy as np
import onnx.parser
import pytest
from cases import compiled, random_array, same_bits

from relu_ops import graphs
from relu_ops.errors import ArgumentError, ArgumentTypeError
from relu_ops.runtime import operator as careful_way
from relu_ops.runtime.operator import Operator

CONVERT = "\nhint: convert it first, for example with x.to(torch.float32)"


@pytest.fixture(scope="module")
def torch() -> Iterator[Any]:
    if importlib.util.find_spec("torch") is None:
        pytest.skip("torch is not installed: pip install 'relu_ops[torch]'")
    yield importlib.import_module("torch")


@pytest.fixture(scope="module")
def relu() -> Operator:
    return compiled(graphs.relu(), "native")


@pytest.fixture(scope="module")
def maxout() -> Operator:
    return compiled(graphs.maxout(2), "native")


def refused(kind: type[Exception], message: str, call: Callable[[], Any]) -> None:
    with pytest.raises(kind, match=f"^{re.escape(message)}$") as caught:
        call()
    assert caught.value.__context__ is None or "plain memory" in message


def layouts(torch: Any) -> dict[str, Any]:
    base = torch.arange(-60, 60, dtype=torch.float32)
    return {
        "whole": base,
        "with an offset": base[7:],
        "every second": base[::2],
        "transposed": base.reshape(8, 15).T,
        "permuted": base.reshape(2, 3, 4, 5).permute(2, 0, 3, 1),
        "channels last": base.reshape(2, 3, 4, 5).to(memory_format=torch.channels_last),
        "repeated": base[:1].expand(9),
        "repeated rows": base[:5].expand(4, 5),
        "empty": base[:0],
        "empty matrix": base[:0].reshape(3, 0),
        "one number": base[3],
        "of one element": base[3:4].reshape(1, 1, 1),
        "large": base.repeat(1000),
    }


LAYOUTS = (
    *("whole", "with an offset", "every second", "transposed", "permuted", "channels last"),
    *("repeated", "repeated rows", "empty", "empty matrix", "one number", "of one element"),
    "large",
)


# ---------------------------------------------------------------- the native way


def test_every_layout_is_tried(torch: Any) -> None:
    assert set(LAYOUTS) == set(layouts(torch))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_torch_in_torch_out(
    relu: Operator, torch: Any, layout: str, careful: list[Operator]
) -> None:
    x = layouts(torch)[layout]
    y = relu(x)
    assert type(y) is torch.Tensor and y.dtype == torch.float32 and not y.requires_grad
    assert y.shape == x.shape and y.device == x.device
    assert y.is_contiguous() and y.storage_offset() == 0
    assert torch.equal(y, torch.relu(x))
    out = torch.full(x.shape, 42, dtype=torch.float32)
    assert relu(x, out=out) is out
    assert torch.equal(out, y)
    assert torch.equal(relu(x, threads=2), y)
    assert not careful
    apart = careful_way.careful_call(relu, (x,), {})
    assert type(apart) is torch.Tensor and torch.equal(apart, y) and apart.stride() == y.stride()


@pytest.mark.parametrize("layout", [one for one in LAYOUTS if "repeated" not in one])
def test_every_layout_of_out(
    relu: Operator, torch: Any, layout: str, careful: list[Operator]
) -> None:
    out = layouts(torch)[layout]
    x = torch.randn(out.shape)
    kept = torch.relu(x)
    assert relu(x, out=out) is out
    assert torch.equal(out, kept)
    relu(x, out=x)
    assert torch.equal(x, kept)
    assert not careful


def test_in_place_with_a_storage_offset(relu: Operator, torch: Any) -> None:
    x = torch.arange(-5, 5, dtype=torch.float32)
    relu(x[2:], out=x[2:])
    assert x.tolist() == [-5, -4, 0, 0, 0, 0, 1, 2, 3, 4]


def test_a_result_owns_its_memory(relu: Operator, torch: Any, careful: list[Operator]) -> None:
    x = torch.randn(1000)
    kept = torch.relu(x)
    first, second = relu(x), relu(-x)
    assert first.untyped_storage().nbytes() == 4000
    places = {one.untyped_storage().data_ptr() for one in (x, first, second)}
    assert len(places) == 3
    view = first[10:20]
    x.fill_(9)
    del first, x
    gc.collect()
    for _ in range(100):  # whoever takes freed memory writes into it
        torch.full((1000,), 7.0)
        relu(torch.full((1000,), 8.0))
    assert torch.equal(view, kept[10:20])
    second += 1  # it is nobody else's
    assert not careful


def test_a_large_result_takes_the_memory_of_one_that_is_gone(relu: Operator, torch: Any) -> None:
    """As arrays of NumPy do: nobody waits for the system to give fresh pages."""
    x = torch.randn(9 * 2**20)
    wanted = torch.relu(x)
    first = relu(x)
    place, view = first.data_ptr(), first[100:]
    assert place % 64 == 0
    del first
    second = relu(x)
    assert second.data_ptr() != place and torch.equal(view, wanted[100:])  # a view holds it
    del view
    third = relu(x)
    assert third.data_ptr() == place
    assert torch.equal(second, wanted) and torch.equal(third, wanted)
    del third
    smaller = relu(x[: 8 * 2**20 + 5])  # which another block is for
    assert smaller.data_ptr() != place and torch.equal(smaller, wanted[: 8 * 2**20 + 5])
    assert relu(x).data_ptr() == place


def test_large_results_of_many_threads(relu: Operator, torch: Any) -> None:
    failures = []

    def work(seed: int) -> None:
        x = torch.full((8 * 2**20 + seed % 2,), float(seed))
        for _ in range(10):
            y = relu(x)
            if not (y == seed).all():
                failures.append(seed)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(1, 5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


def test_what_free_memory_may_hold_in_all(torch: Any) -> None:
    """A gigabyte; what is more is the system's again."""
    done = children.run("""
import torch, relu_ops
from relu_ops import graphs
relu = relu_ops.compile(graphs.relu())

def mapped():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[0]) * 4096 / 2**20

x = torch.zeros(16 * 2**20)
relu(x)
before = mapped()
many = [relu(x) for _ in range(24)]
del many
assert 900 < mapped() - before < 1100, mapped() - before
""")
    assert (done.returncode, done.stderr) == (0, "")


def test_results_are_given_back(relu: Operator, torch: Any) -> None:
    x = torch.randn(1 << 20)
    relu(x)
    with open("/proc/self/statm") as file:
        before = int(file.read().split()[1])
    for _ in range(200):
        relu(x)
    with open("/proc/self/statm") as file:
        assert (int(file.read().split()[1]) - before) * 4096 < 100 << 20  # of 800 MiB


def test_it_keeps_the_number_of_references(relu: Operator, torch: Any) -> None:
    x, y, short = torch.randn(8), torch.empty(8), torch.empty(7)
    gradient = torch.randn(8, requires_grad=True)
    watched = (relu, x, y, short, gradient, torch.Tensor)

    def call() -> None:
        relu(x)
        relu(x, out=y)
        for wrong in ((x, short), (gradient, y), (x, gradient)):
            with pytest.raises(ArgumentError):
                relu(wrong[0], out=wrong[1])

    call()
    gc.collect()
    before = [sys.getrefcount(one) for one in watched]
    for _ in range(100):
        call()
    gc.collect()
    assert [sys.getrefcount(one) for one in watched] == before


@pytest.mark.parametrize(
    "dtype", ["float16", "bfloat16", "float64", "int8", "int16", "int32", "int64"]
)
def test_every_dtype(torch: Any, dtype: str, careful: list[Operator]) -> None:
    op = compiled(graphs.relu(dtype), "native")
    numbers = random_array(np.random.default_rng(0), dtype, (1000,))
    bits = f"i{numbers.itemsize}"
    x = torch.from_numpy(numbers.view(bits)).view(getattr(torch, dtype))
    for given in (x, x[1:], x[::3]):
        expected = op(
            np.ascontiguousarray(
                given.view(getattr(torch, np.dtype(bits).name)).numpy().view(numbers.dtype)
            )
        )
        y = op(given)
        out = torch.empty(given.shape, dtype=x.dtype)
        assert op(given, out=out) is out
        for found in (y, out):
            assert found.dtype == x.dtype
            shown = found.view(getattr(torch, np.dtype(bits).name)).numpy().view(numbers.dtype)
            assert same_bits(shown, expected)
    assert not careful
    back = careful_way.careful_call(op, (x,), {})
    assert back.dtype == x.dtype and torch.equal(back.view(torch.uint8), op(x).view(torch.uint8))


def test_a_parameter(relu: Operator, torch: Any, careful: list[Operator]) -> None:
    x = torch.nn.Parameter(torch.tensor([-1.0, 2.0]), requires_grad=False)
    y = relu(x)
    assert type(y) is torch.Tensor and y.tolist() == [0, 2]
    assert relu(x, out=x) is x and x.tolist() == [0, 2]
    assert not careful


def test_several_inputs(maxout: Operator, torch: Any, careful: list[Operator]) -> None:
    a, b = torch.randn(3, 4), torch.randn(4)
    assert torch.equal(maxout(a, b), torch.maximum(a, b))
    assert torch.equal(maxout(b, a), torch.maximum(a, b))
    assert torch.equal(maxout(a, a, out=a), a)
    assert not careful


def test_a_number_beside_a_tensor(torch: Any, careful: list[Operator]) -> None:
    text = "g (float[N] x, float s) => (float[N] y) { y = Mul(x, s) }"
    op = compiled(
        onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : 18]>\n{text}'), "native"
    )
    x, out = torch.randn(9), torch.empty(9)
    assert torch.equal(op(x, 0.5), x * 0.5)
    assert op(x, 0.25, out=out) is out and torch.equal(out, x * 0.25)
    assert torch.equal(op(x, torch.tensor(2.0)), x * 2)
    assert not careful
    assert torch.equal(op(x, 2), x * 2)
    assert torch.equal(op(x, np.array(2, np.float32)), x * 2)
    assert len(careful) == 2


# ---------------------------------------------------------------- the careful way


def test_arrays_of_both_kinds(maxout: Operator, torch: Any, careful: list[Operator]) -> None:
    a, b = torch.randn(3, 4), np.ones((3, 4), np.float32)
    expected = np.maximum(a.numpy(), 1)
    for inputs in ((a, b), (b, a), (a, [[1.0] * 4] * 3)):
        y = maxout(*inputs)
        assert type(y) is torch.Tensor and same_bits(y.numpy(), expected)
        out = np.empty((3, 4), np.float32)
        assert maxout(*inputs, out=out) is out and same_bits(out, expected)
        tensor = torch.empty(3, 4)
        assert maxout(*inputs, out=tensor) is tensor and same_bits(tensor.numpy(), expected)
    assert len(careful) == 9


def test_several_outputs(torch: Any) -> None:
    text = "g (float[N] x) => (float[N] y, float[N] z) { y = Relu(x)  z = Neg(x) }"
    op = compiled(
        onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : 18]>\n{text}'), "native"
    )
    x = torch.tensor([-1.0, 2.0])
    outs = (torch.empty(2), torch.empty(2))
    assert op(x, out=outs)[1] is outs[1]
    for y, z in (outs, op(x)):
        assert type(y) is type(z) is torch.Tensor
        assert (y.tolist(), z.tolist()) == ([0, 2], [1, -2])


def test_a_subclass(relu: Operator, torch: Any, careful: list[Operator]) -> None:
    class Own(torch.Tensor):
        """A tensor of somebody's own."""

    x = torch.tensor([-1.0, 2.0]).as_subclass(Own)
    y = relu(x)
    assert type(y) is torch.Tensor and y.tolist() == [0, 2]
    assert relu(x, out=x) is x and x.tolist() == [0, 2]
    assert len(careful) == 2


@pytest.mark.parametrize("without", ["no_grad", "inference_mode", "detach"])
def test_where_no_gradient_is_wanted(relu: Operator, torch: Any, without: str) -> None:
    x = torch.tensor([-1.0, 2.0], requires_grad=True)
    for given in (x, torch.nn.Parameter(x.detach().clone()), x * 1):
        if without == "detach":
            y = relu(given.detach())
        else:
            with getattr(torch, without)():
                y = relu(given)
        assert y.tolist() == [0, 2] and not y.requires_grad


def test_a_gradient_is_never_lost(relu: Operator, maxout: Operator, torch: Any) -> None:
    x, plain = torch.tensor([-1.0, 2.0], requires_grad=True), torch.ones(2)
    message = (
        "{}: {} requires a gradient, which this operator does not pass on\n"
        "hint: call relu_ops.interop.torch.wrap(operator), which passes it on; or pass "
        "{}.detach(), or call it under torch.no_grad(), if none is wanted"
    )
    for given in (x, torch.nn.Parameter(torch.ones(2)), x * 1, x[:1], x.view(2, 1)):
        out = torch.full(given.shape, 42.0)
        for call in (
            relu,
            relu.bind,
            functools.partial(relu, out=out),
            functools.partial(relu, threads=1),
        ):
            refused(
                ArgumentError,
                message.format("relu", "x", "x"),
                lambda call=call, given=given: call(given),
            )
        assert (out == 42).all()
    for k, inputs in enumerate([(x, plain), (plain, x)]):
        wanted = message.format("maxout", f"x{k}", f"x{k}")
        refused(ArgumentError, wanted, lambda inputs=inputs: maxout(*inputs))
    array = np.ones(2, np.float32)
    refused(ArgumentError, message.format("maxout", "x1", "x1"), lambda: maxout(array, x))


@pytest.mark.parametrize("grad", [True, False])
def test_an_out_that_requires_grad(relu: Operator, torch: Any, grad: bool) -> None:
    x = torch.ones(2, requires_grad=True)
    with nullcontext() if grad else torch.no_grad():
        for given in (torch.ones(2), np.ones(2, np.float32)):
            refused(
                ArgumentError,
                "relu: out for y requires grad, and cannot be written in place\n"
                "hint: pass a tensor that requires none, or leave out away",
                lambda given=given: relu(given, out=x),
            )


def negated(torch: Any) -> list[Any]:
    """Tensors whose memory holds the negative of what they are."""
    return [
        torch._neg_view(torch.tensor([1.0, -2.0, 3.0])),
        torch.tensor([1 + 1j, 2 - 2j, 3 + 3j]).conj().imag,
    ]


def test_a_pending_negation_is_resolved(
    relu: Operator, maxout: Operator, torch: Any, careful: list[Operator]
) -> None:
    for x in negated(torch):
        assert x.is_neg() and x.tolist() == [-1, 2, -3]
        y = relu(x)
        assert y.tolist() == [0, 2, 0] and not y.is_neg()
        assert maxout(torch.zeros(3), x).tolist() == [0, 2, 0]
        out = torch.empty(3)
        assert relu(x, out=out) is out and out.tolist() == [0, 2, 0]
    assert len(careful) == 6


def test_a_conjugation_resolved_by_half(relu: Operator, torch: Any) -> None:
    real = torch.tensor([1 + 1j, -2 - 2j]).conj().real
    assert relu(real).tolist() == [1, 0]


def test_a_negated_tensor_is_not_written(relu: Operator, torch: Any) -> None:
    """Its memory would have to hold the negative: the result would go into a copy."""
    for out in negated(torch):
        refused(
            ArgumentError,
            "relu: out for y is a negated view, and cannot be written in place\n"
            "hint: pass a tensor of its own memory, such as torch.empty_like gives",
            lambda out=out: relu(torch.ones(3), out=out),
        )
        assert out.tolist() == [-1, 2, -3]
        with pytest.raises(ArgumentError, match="cannot be bound as it lies in memory"):
            relu.bind(out)


@pytest.mark.parametrize(
    "examples",
    [
        "operator.tensors_of_every_nature",
        "lambda: ()",
        "lambda: None",
        "lambda: (torch.zeros(1), 1)",
        "lambda: 1 / 0",
    ],
)
def test_a_tensor_is_asked_by_torch_or_by_its_library(examples: str, torch: Any) -> None:
    """Whichever way was found when torch was met: all answers are the same."""
    code = f"""
import sys, torch, relu_ops
from relu_ops.runtime import operator
operator.tensors_of_every_nature = {examples}
op = relu_ops.compile(relu_ops.graphs.relu())
plain, leaf = torch.tensor([1.0, -2.0]), torch.tensor([1.0, -2.0], requires_grad=True)
negated = torch._neg_view(plain)
out = torch.empty(2)
print(op(plain).tolist(), op(negated, out=out).tolist(), negated.tolist())
with torch.no_grad():
    print(op(leaf).tolist(), op(torch.nn.Parameter(plain)).tolist())
for x, y in ((leaf, None), (plain, leaf), (plain, negated)):
    try:
        op(x, out=y)
    except relu_ops.errors.ArgumentError as error:
        print(str(error).splitlines()[0])
"""
    done = children.run(code)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [
        "[1.0, 0.0] [0.0, 2.0] [-1.0, 2.0]",
        "[1.0, 0.0] [1.0, 0.0]",
        "relu: x requires a gradient, which this operator does not pass on",
        "relu: out for y requires grad, and cannot be written in place",
        "relu: out for y is a negated view, and cannot be written in place",
    ]


def test_bound(relu: Operator, torch: Any) -> None:
    x = torch.tensor([-1.0, 2.0])
    call = relu.bind(x)
    x[0] = 5
    call()
    assert type(call.out) is torch.Tensor and call.out.tolist() == [5, 2]
    assert call.inputs[0] is x
    with pytest.raises(ArgumentError, match="cannot be bound"):
        memory = torch.ones(9)
        relu.bind(memory[1:], out=memory[:-1])


def test_a_default_device_of_others_is_no_matter(
    relu: Operator, torch: Any, careful: list[Operator]
) -> None:
    x = torch.tensor([-1.0, 2.0])
    with torch.device("meta"):
        for given in (x, torch._neg_view(-x)):
            y = relu(given)
            assert y.device.type == "cpu" and y.tolist() == [0, 2]
    assert len(careful) == 1


# ---------------------------------------------------------------- what is refused


def fake(torch: Any, *shape: int) -> Any:
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        return torch.ones(*shape)


def quantized(torch: Any) -> Any:
    return torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8)


TRANSFORMED = (
    "relu: x is wrapped by a transformation of torch.func, which this operator does not know\n"
    "hint: call it outside of vmap, grad and jvp"
)

REFUSED: dict[str, tuple[Callable[[Any], Any], type[Exception], str]] = {
    "another dtype": (
        lambda torch: torch.ones(2, dtype=torch.float64),
        ArgumentTypeError,
        f"relu: x.dtype must be float32 (not float64){CONVERT}",
    ),
    "bfloat16": (
        lambda torch: torch.ones(2, dtype=torch.bfloat16),
        ArgumentTypeError,
        f"relu: x.dtype must be float32 (not bfloat16){CONVERT}",
    ),
    "complex": (
        lambda torch: torch.ones(2, dtype=torch.complex64).conj(),
        ArgumentTypeError,
        f"relu: x.dtype must be float32 (not complex64){CONVERT}",
    ),
    "sparse": (
        lambda torch: torch.ones(2, 2).to_sparse(),
        ArgumentTypeError,
        "relu: x must be a dense tensor (not torch.sparse_coo)\nhint: pass x.to_dense()",
    ),
    "sparse rows": (
        lambda torch: torch.ones(2, 2).to_sparse_csr(),
        ArgumentTypeError,
        "relu: x must be a dense tensor (not torch.sparse_csr)\nhint: pass x.to_dense()",
    ),
    "oneDNN's": (
        lambda torch: torch.ones(2, 2).to_mkldnn(),
        ArgumentTypeError,
        "relu: x must be a dense tensor (not torch._mkldnn)\nhint: pass x.to_dense()",
    ),
    "without elements": (
        lambda torch: torch.ones(2, device="meta"),
        ArgumentError,
        "relu: x is on the device meta: it has a shape and no elements\n"
        "hint: pass a tensor in the CPU's memory",
    ),
    "of 17 dimensions": (
        lambda torch: torch.ones((1,) * 17),
        ArgumentError,
        "relu: x has 17 dimensions; at most 16 are supported\n"
        "hint: reshape it first: dimensions that lie together can be one",
    ),
}


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta")
@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_refused(relu: Operator, torch: Any, kind: str) -> None:
    make, error, message = REFUSED[kind]
    x = make(torch)
    refused(error, message, lambda: relu(x))
    refused(error, message, lambda: relu.bind(x))
    refused(error, message, lambda: relu(x, out=torch.empty(2)))


WITHOUT_MEMORY: dict[str, Callable[[Any], Any]] = {
    "fake": lambda torch: fake(torch, 2),
    "fake and empty": lambda torch: fake(torch, 0),
    "quantized": quantized,
    "of 8 bits": lambda torch: torch.ones(2).to(torch.float8_e4m3fn),
}


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
@pytest.mark.parametrize("kind", WITHOUT_MEMORY)
def test_what_has_no_memory_that_numpy_knows(relu: Operator, torch: Any, kind: str) -> None:
    x = WITHOUT_MEMORY[kind](torch)
    for call in (relu, relu.bind, lambda x: relu(torch.ones(2), out=x)):
        with pytest.raises(ArgumentTypeError) as caught:
            call(x)
        name = "relu: x" if call in (relu, relu.bind) else "relu: out for y"
        assert caught.value.message.startswith(f"{name} has no plain memory: ")
        assert "\n" not in caught.value.message
        assert caught.value.hint == "pass an ordinary torch.Tensor in the CPU's memory"


def test_transformations(relu: Operator, torch: Any) -> None:
    x = torch.randn(3, 4)
    for call in (
        lambda: torch.func.vmap(relu)(x),
        lambda: torch.func.vmap(lambda row: relu(row, out=torch.empty(4)))(x),
        lambda: torch.func.grad(lambda t: relu(t).sum())(x),
        lambda: torch.func.vmap(torch.func.grad(lambda t: relu(t).sum()))(x),
        lambda: torch.func.jvp(relu, (x,), (x,)),
        lambda: torch.func.functionalize(relu)(x),
    ):
        refused(ArgumentTypeError, TRANSFORMED, call)


def test_a_transformed_out(relu: Operator, torch: Any) -> None:
    plain = torch.ones(4)
    with pytest.raises(ArgumentTypeError) as caught:
        torch.func.vmap(lambda out: relu(plain, out=out))(torch.empty(3, 4))
    assert caught.value.message == TRANSFORMED.partition("\n")[0].replace("x", "out for y", 1)


OUT = "\nhint: pass an array of the output's dtype and shape, or leave out away"


def test_wrong_outs(relu: Operator, torch: Any) -> None:
    x = torch.ones(4, 3)
    for out, kind, message in (
        (
            torch.empty(4, 4),
            ArgumentError,
            "relu: out for y.shape must be (4, 3) (not (4, 4))" + OUT,
        ),
        (
            torch.empty(4, 3, dtype=torch.float16),
            ArgumentTypeError,
            f"relu: out for y.dtype must be float32 (not float16){OUT}",
        ),
        (
            torch.zeros(3).expand(4, 3),
            ArgumentError,
            "relu: out for y has several elements in one place (strides (0, 4))\n"
            "hint: pass an array whose elements lie apart",
        ),
        (
            torch.empty(4, 3, device="meta"),
            ArgumentError,
            "relu: out for y is on the device meta: it has a shape and no elements\n"
            "hint: pass a tensor in the CPU's memory",
        ),
        (
            "text",
            ArgumentTypeError,
            f"relu: out for y must be a NumPy array or a torch tensor (not str){OUT}",
        ),
    ):
        refused(kind, message, lambda out=out: relu(x, out=out))


def test_an_output_beyond_all_memory(torch: Any) -> None:
    """It is torch that cannot make it, and says so; the process lives on."""
    code = """
import sys, torch, numpy as np
from cases import compiled
from relu_ops import graphs
add = compiled(graphs.add_relu(), "native")
for extent, kind in ((1 << 22, RuntimeError), (1 << 31, ValueError)):
    a, b = torch.ones(1).expand(extent, 1), torch.ones(1).expand(1, extent)
    try:
        add(a, b)
    except kind as error:
        print(type(error).__name__)
"""
    done = children.run(code)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "RuntimeError\nArgumentError\n"


def test_a_tensor_while_others_are_faked(torch: Any) -> None:
    """Under this mode torch makes tensors without memory; a result has memory of its own."""
    code = """
import sys, torch, numpy as np
from torch._subclasses.fake_tensor import FakeTensorMode
from cases import compiled
from relu_ops import graphs
relu = compiled(graphs.relu(), "native")
x, out = torch.tensor([-1.0, 2.0]), torch.empty(2)
for allowed in (True, False):
    with FakeTensorMode(allow_non_fake_inputs=allowed):
        print(relu(x, out=out).tolist(), relu(x).tolist(), type(relu(x)).__name__)
"""
    done = children.run(code)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "[0.0, 2.0] [0.0, 2.0] Tensor\n" * 2


def test_a_class_that_is_only_called_tensor(relu: Operator) -> None:
    """No torch: it is asked by the protocols that it has."""

    class Tensor:
        requires_grad = False

        def __init__(self, x: np.ndarray) -> None:
            self.x = x

        def __array__(self, *_: Any, **__: Any) -> np.ndarray:
            return self.x

    assert relu(Tensor(np.array([-1, 2], np.float32))).tolist() == [0, 2]
    with pytest.raises(ArgumentTypeError, match=r"x\.dtype must be float32 \(not bfloat16\)"):
        relu(Tensor(np.ones(2, ml_dtypes.bfloat16)))
