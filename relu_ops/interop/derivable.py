"""A graph with its derivatives, which are graphs too: what the doors to torch and JAX share.

A derivative is made when it is first needed, and is in its turn a graph with derivatives. A tangent
is the gradient, by the upstream gradient, of the gradient.
"""

from __future__ import annotations

import abc
import hashlib
import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Self, cast

import onnx

from relu_ops import gradients, jit
from relu_ops.compiler import frontend
from relu_ops.contract import ir
from relu_ops.contract.semantics import DTYPES
from relu_ops.errors import ArgumentError, ModelError
from relu_ops.runtime import dispatch
from relu_ops.runtime.operator import Operator

if TYPE_CHECKING:
    from relu_ops.compiler.frontend import Model


def content_of(model: Model | Operator, name: str | None) -> tuple[bytes, Operator | None]:
    """The bytes of a model, and its operator where it is compiled already.

    Args:
        model: A model, as for `relu_ops.compile`; the path of a bundle; or an operator.
        name: Which operator, of a bundle that holds several.
    """
    held: Any = model
    if isinstance(model, str | os.PathLike) and os.path.isdir(model):
        held = dispatch.load(model, name=name)
    if isinstance(held, Operator):
        return held.bundle.model(held.name), held
    return frontend.read_model(held).SerializeToString(deterministic=True), None


_KNOWN: dict[tuple[type[Derivable], bytes, bool, bool], Derivable] = {}


class Derivable(abc.ABC):
    """A graph, with its derivatives.

    Attributes:
        model: The graph, as an ONNX model.
        graph: The same, imported.
    """

    name: str
    without_gradient: str
    """How a program of the door says that it wants no gradient of something."""

    def __init__(
        self,
        content: bytes,
        straight_through: bool,
        operator: Operator | None,
        is_derivative: bool,
    ) -> None:
        self._content = content
        self._straight_through = straight_through
        self._operator = operator
        self._is_derivative = is_derivative
        self.model = onnx.ModelProto.FromString(content)
        self.graph = frontend.import_model(self.model)
        self._parts: dict[Any, Any] = {}

    @classmethod
    def of(
        cls,
        content: bytes,
        straight_through: bool,
        operator: Operator | None = None,
        is_derivative: bool = False,
    ) -> Self:
        """A graph of a door. One graph is one object, by which the door knows what it compiled."""
        key = (cls, hashlib.sha256(content).digest(), straight_through, is_derivative)
        if key not in _KNOWN:
            _KNOWN[key] = cls(content, straight_through, operator, is_derivative)
        return cast(Self, _KNOWN[key])

    @classmethod
    def known(cls) -> list[Self]:
        """Every graph of a door in this process, and derivatives that were made."""
        return [cast(Self, one) for (door, *_), one in _KNOWN.items() if door is cls]

    def __reduce__(self) -> tuple[Any, ...]:
        arguments = (self._content, self._straight_through, None, self._is_derivative)
        return type(self).of, arguments

    def __deepcopy__(self, memo: Any) -> Self:
        return self  # it has no state

    @staticmethod
    @abc.abstractmethod
    def broadcast(*shapes: Sequence[Any]) -> Sequence[Any]:
        """The broadcast of shapes, whose extents may be symbols of the door."""

    @property
    def operator(self) -> Operator:
        """The operator; compiled when it is first asked for, where it was not."""
        if self._operator is None:
            self._operator = jit.compile(self.model)
        return self._operator

    def rewritten(self) -> onnx.ModelProto:
        """The graph without functions, in the operators of a new opset."""
        return gradients.rewritten(self.model)

    def shapes(self, shapes: Sequence[Sequence[Any]]) -> list[tuple[Any, ...]]:
        """The shapes of the results, for inputs of some shapes; extents may be symbols."""
        found = []
        for output in self.graph.outputs:
            terms = ir.ordered(self.graph.values[output.value].terms)
            own = (t.shape if t.input is None else tuple(shapes[t.input]) for t in terms)
            seen = [t.view.shape(shape) for t, shape in zip(terms, own, strict=True)]
            found.append(tuple(self.broadcast(*seen)))
        return found

    # ---- derivatives

    def differentiable(self) -> list[str]:
        """The names of the inputs that have a gradient."""
        return self._part("names", lambda: gradients.names(self.graph, self._straight_through))

    def checked(self, names: Sequence[str]) -> tuple[str, ...]:
        """Those of some inputs that have a gradient; a graph of the user's must have all.

        A derivative need not: the second derivative of a Leaky ReLU by x is nothing.
        """
        found = tuple(name for name in names if name in self.differentiable())
        for name in () if self._is_derivative else names:
            if name not in found:
                raise ArgumentError(
                    f"{self.name}: {name} requires a gradient and has none: every path to an "
                    "output goes through integers, booleans or operators without a derivative",
                    f"pass {self.without_gradient.format(name)}; quantized chains have "
                    "wrap(..., straight_through=True)",
                )
        return found

    def check_results(self, shapes: Sequence[tuple[Any, ...]]) -> None:
        """Refuse to differentiate results of several shapes: see `gradients`."""
        floats = self.floats()
        if any(tuple(shapes[k]) != tuple(shapes[floats[0]]) for k in floats[1:]):
            raise ArgumentError(
                f"{self.name}: its outputs have several shapes here, and gradients have one",
                "wrap a model for each, and differentiate them apart",
            )

    def backward(self, names: tuple[str, ...]) -> tuple[Self, list[int]]:
        """What computes the gradients of some inputs.

        And what it takes, as places among the inputs and the gradients of the floating outputs.
        """

        def make() -> Any:
            back = self._gradient(self.model, names)
            return self._derived(back, f"{self.graph.name}_gradient_of_{'_'.join(names)}")

        return self._part(("backward", names), make)

    def forward(self, names: tuple[str, ...]) -> tuple[Self, list[int], list[int]]:
        """What computes tangents of outputs, from tangents of some inputs.

        And what it takes, as places among the inputs, the gradients of the floating outputs (none
        of which it takes: a gradient is linear in them) and the tangents; and of which outputs.
        """

        def make() -> Any:
            back = self._gradient(self.model, names)
            upstream = [one.name for one in back.graph.input[len(self.graph.inputs) :]]
            reached = gradients.names(frontend.import_model(back), False)
            chosen = [name for name in upstream if name in reached]
            twice = self._gradient(back, chosen)
            made = self._derived(twice, f"{self.graph.name}_tangent_of_{'_'.join(names)}")
            return *made, [self.floats()[upstream.index(name)] for name in chosen]

        return self._part(("forward", names), make)

    def iteration(
        self, names: tuple[str, ...], shapes: Sequence[tuple[Any, ...]]
    ) -> list[tuple[Any, ...]]:
        """The shapes that the gradients of some inputs have before they are summed."""
        back, places = self.backward(names)
        results = self.shapes(shapes)
        every = [*shapes, *(results[k] for k in self.floats())]
        return back.shapes([every[k] for k in places])

    def _gradient(self, model: onnx.ModelProto, names: Sequence[str]) -> onnx.ModelProto:
        return gradients.gradient(
            model, names, straight_through=self._straight_through, keep_outputs=False
        )

    def floats(self) -> list[int]:
        """The outputs that have a gradient."""
        values = self.graph.values
        outputs = enumerate(self.graph.outputs)
        return [k for k, one in outputs if DTYPES[values[one.value].dtype].is_float]

    def _derived(self, model: onnx.ModelProto, name: str) -> tuple[Self, list[int]]:
        """A derivative under its name, without the inputs that it does not read."""
        read = {name for node in model.graph.node for name in node.input}
        places = [k for k, one in enumerate(model.graph.input) if one.name in read]
        kept = [model.graph.input[k] for k in places]
        del model.graph.input[:]
        model.graph.input.extend(kept)
        model.graph.name = name
        content = model.SerializeToString(deterministic=True)
        return self.of(content, False, is_derivative=True), places

    def _part(self, key: Any, make: Callable[[], Any]) -> Any:
        if key not in self._parts:
            self._parts[key] = make()
        return self._parts[key]

    def any_rank(self) -> Self | None:
        """The same graph without declared shapes; None where it depends on them."""

        def make() -> Self | None:
            model = onnx.ModelProto()
            model.CopyFrom(self.model)
            del model.graph.value_info[:]
            for info in (*model.graph.input, *model.graph.output):
                info.type.tensor_type.ClearField("shape")
            model.graph.name = f"{self.graph.name}_of_any_rank"
            try:
                content = model.SerializeToString(deterministic=True)
                return self.of(content, self._straight_through, None, self._is_derivative)
            except ModelError:
                return None

        return self._part("any rank", make)
