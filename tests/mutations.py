"""Damages ONNX models: by bytes, as a broken disk would, and by fields, as an attacker would.

`mutated(seed, models)` is one damaged file; the same for the same seed, so that a number is a
reproduction.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import DecodeError, Message
from onnx import AttributeProto, ModelProto, NodeProto, TensorProto, helper

from relu_ops.contract.semantics import OPERATORS

Random = random.Random

# ---------------------------------------------------------------- bytes


def _span(rng: Random, content: bytes, longest: int = 64) -> tuple[int, int]:
    start = rng.randrange(len(content) + 1)
    return start, min(len(content), start + rng.randrange(1, longest))


def _flip_bits(rng: Random, content: bytes, _: bytes) -> bytes:
    changed = bytearray(content)
    for _k in range(rng.choice([1, 1, 1, 2, 4, 16])):
        changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def _set_bytes(rng: Random, content: bytes, _: bytes) -> bytes:
    changed = bytearray(content)
    for _k in range(rng.choice([1, 1, 2, 8])):
        changed[rng.randrange(len(changed))] = rng.choice(
            [0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)]
        )
    return bytes(changed)


def _remove_span(rng: Random, content: bytes, _: bytes) -> bytes:
    start, stop = _span(rng, content)
    return content[:start] + content[stop:]


def _double_span(rng: Random, content: bytes, _: bytes) -> bytes:
    start, stop = _span(rng, content)
    return content[:stop] + content[start:stop] * rng.choice([1, 1, 3, 200]) + content[stop:]


def _splice(rng: Random, content: bytes, other: bytes) -> bytes:
    start, stop = _span(rng, other, 200)
    at, until = _span(rng, content)
    return content[:at] + other[start:stop] + content[rng.choice([at, until]) :]


def _insert_noise(rng: Random, content: bytes, _: bytes) -> bytes:
    at = rng.randrange(len(content) + 1)
    return content[:at] + rng.randbytes(rng.randrange(1, 40)) + content[at:]


def _insert_huge_number(rng: Random, content: bytes, _: bytes) -> bytes:
    at = rng.randrange(len(content) + 1)
    number = rng.choice([b"\xff" * 9 + b"\x01", b"\xff" * 4 + b"\x07", b"\x80" * 20])
    return content[:at] + number + content[at + rng.randrange(2) :]


def _truncate(rng: Random, content: bytes, _: bytes) -> bytes:
    return content[: rng.randrange(len(content))]


_BYTES: tuple[Callable[[Random, bytes, bytes], bytes], ...] = (
    _flip_bits,
    _set_bytes,
    _remove_span,
    _double_span,
    _splice,
    _insert_noise,
    _insert_huge_number,
    _truncate,
)

# ---------------------------------------------------------------- any field of the format

_NUMBERS = (
    0,
    1,
    -1,
    2,
    3,
    7,
    9,
    16,
    127,
    1000,
    2**31 - 1,
    2**31,
    -(2**31),
    2**62,
    2**63 - 1,
    -(2**63),
)
_FLOATS = (0.0, -0.0, 1.0, -1.0, float("nan"), float("inf"), -float("inf"), 3.4e38, 1e-45)
_TEXTS = (
    "",
    "x",
    "y",
    "\0",
    "a" * 5000,
    "\u202e\U0001f600",
    "../x",
    "x\0y",
    "N",
    "ai.onnx",
    "%s%n",
)


def _messages(message: Message) -> list[Message]:
    found, pending = [], [message]
    while pending:
        one = pending.pop()
        found.append(one)
        for field, value in one.ListFields():
            if field.type == FieldDescriptor.TYPE_MESSAGE:
                pending += list(value) if field.is_repeated else [value]
    return found


def _scalar(rng: Random, field: FieldDescriptor) -> Any:
    kind = field.cpp_type
    if kind in (FieldDescriptor.CPPTYPE_FLOAT, FieldDescriptor.CPPTYPE_DOUBLE):
        return rng.choice(_FLOATS)
    if field.type == FieldDescriptor.TYPE_BYTES:
        return rng.choice([b"", b"\0", b"\xff" * 7, rng.randbytes(rng.randrange(40))])
    if field.type == FieldDescriptor.TYPE_STRING:
        return rng.choice(_TEXTS)
    if kind == FieldDescriptor.CPPTYPE_ENUM:
        return rng.choice([v.number for v in field.enum_type.values])
    number = rng.choice([*_NUMBERS, rng.randrange(40)])
    if kind in (FieldDescriptor.CPPTYPE_INT64,):
        return number
    if kind in (FieldDescriptor.CPPTYPE_UINT64,):
        return number % 2**64
    return (number + 2**31) % 2**32 - 2**31


def _any_field(rng: Random, model: ModelProto) -> None:
    """Clear, set, double, drop or reorder one field, whichever it is."""
    message = rng.choice(_messages(model))
    present = [field for field, _ in message.ListFields()]
    every = message.DESCRIPTOR.fields
    field = rng.choice(present if present and rng.random() < 0.8 else every)
    name = field.name
    if not field.is_repeated:
        if field.type == FieldDescriptor.TYPE_MESSAGE or rng.random() < 0.15:
            message.ClearField(name)
        else:
            setattr(message, name, _scalar(rng, field))
        return
    items = getattr(message, name)
    if field.type == FieldDescriptor.TYPE_MESSAGE:
        _change_messages(rng, items)
    else:
        _change_scalars(rng, items, field)


def _change_messages(rng: Random, items: Any) -> None:
    what = rng.randrange(4)
    if not items or what == 0:
        items.add()
    elif what == 1:
        del items[rng.randrange(len(items))]
    elif what == 2:
        for _ in range(rng.choice([1, 1, 1, 50])):
            items.add().CopyFrom(rng.choice(items))
    else:
        items.add().CopyFrom(items[0])
        del items[0]


def _change_scalars(rng: Random, items: Any, field: FieldDescriptor) -> None:
    what = rng.randrange(4)
    if not items or what == 0:
        items.extend([_scalar(rng, field) for _ in range(rng.choice([1, 1, 2, 10, 300]))])
    elif what == 1:
        del items[rng.randrange(len(items))]
    elif what == 2:
        items[rng.randrange(len(items))] = _scalar(rng, field)
    else:
        items.append(rng.choice(list(items)))


# ---------------------------------------------------------------- what ONNX gives a meaning

_LOCATIONS = (
    "../outside.bin",
    "/etc/passwd",
    "/proc/self/environ",
    "/dev/zero",
    "inner/../../outside.bin",
    "link.bin",
    "linked/passwd",
    "fifo",
    ".",
    "",
    "missing.bin",
    "inside.bin",
    "./inside.bin",
    "INSIDE.BIN",
    "inside.bin\0../outside.bin",
    "inner//inside.bin",
    "\\\\host\\share",
    "file:///etc/passwd",
    "http://127.0.0.1:1/x",
    "../" * 600 + "etc/passwd",
)
"""Where external data may be said to lie. `folder_for_models` in the tests makes what is there."""

_AMOUNTS = ("0", "8", "-1", str(2**63), str(2**64), "1e3", "", "0x10", "\u0661", " 8 ", "9" * 5000)
_HUGE = (0, 1, 2, 2**16, 2**31, 2**32, 2**40, 2**62, 2**63 - 1, -1, -(2**63))
_DTYPES = (*range(30), -1, 2**31 - 1)


def _tensors(model: ModelProto) -> list[TensorProto]:
    return [m for m in _messages(model) if isinstance(m, TensorProto)]


def _tensor(rng: Random, model: ModelProto) -> TensorProto:
    """One of the model's tensors; a new initializer where it has none."""
    tensors = _tensors(model)
    if tensors and rng.random() < 0.8:
        return rng.choice(tensors)
    tensor = model.graph.initializer.add(name=_name(rng, model), data_type=rng.choice(_DTYPES[:18]))
    tensor.dims.extend([rng.randrange(4) for _ in range(rng.randrange(3))])
    tensor.raw_data = rng.randbytes(rng.choice([0, 4, 8, 16]))
    return tensor


def _name(rng: Random, model: ModelProto) -> str:
    graph = model.graph
    names = [n for node in graph.node for n in (*node.input, *node.output)]
    names += [v.name for v in (*graph.input, *graph.output, *graph.initializer)]
    return rng.choice([*names, *_TEXTS])


def _node(rng: Random, model: ModelProto) -> NodeProto:
    if not model.graph.node:
        model.graph.node.add(op_type="Relu", input=["x"], output=["y"])
    return rng.choice(model.graph.node)


def _external(rng: Random, model: ModelProto) -> None:
    _make_external(rng, _tensor(rng, model))


def _make_external(rng: Random, tensor: TensorProto) -> None:
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    del tensor.external_data[:]
    entries = [("location", rng.choice(_LOCATIONS))]
    entries += [(key, rng.choice(_AMOUNTS)) for key in ("offset", "length") if rng.random() < 0.4]
    entries += [("checksum", "0"), ("location", rng.choice(_LOCATIONS))][: rng.randrange(3)]
    for key, value in entries:
        tensor.external_data.add(key=key, value=value)


def _tensor_shape(rng: Random, model: ModelProto) -> None:
    tensor = _tensor(rng, model)
    del tensor.dims[:]
    tensor.dims.extend([rng.choice(_HUGE) for _ in range(rng.choice([0, 1, 1, 2, 3, 9, 70]))])


def _tensor_dtype(rng: Random, model: ModelProto) -> None:
    _tensor(rng, model).data_type = rng.choice(_DTYPES)


def _names(rng: Random, model: ModelProto) -> None:
    """Cycles, names given twice, names of nothing."""
    node = _node(rng, model)
    names = rng.choice([node.input, node.output])
    if names and rng.random() < 0.8:
        names[rng.randrange(len(names))] = _name(rng, model)
    else:
        names.append(_name(rng, model))


def _operator(rng: Random, model: ModelProto) -> None:
    node = _node(rng, model)
    others = ("Exp", "If", "Loop", "Scan", "Resize", "relu", "", "Relu\0", "\u212aelu")
    node.op_type = rng.choice([*OPERATORS, *OPERATORS, *others])
    if rng.random() < 0.1:
        node.domain = rng.choice(["ai.onnx", "com.example", "ai.onnx.ml", "local", "\0"])


_ATTRIBUTES = ("alpha", "beta", "gamma", "min", "max", "to", "axis", "block_size", "broadcast")
_ATTRIBUTES += ("output_dtype", "precision", "value", "value_float", "value_ints", "saturate")
_ATTRIBUTES += ("value_int", "value_floats", "consumed_inputs", "sparse_value", "body")


def _attribute(rng: Random, model: ModelProto) -> None:
    node = _node(rng, model)
    values: list[Any] = [*_NUMBERS, *_FLOATS, *_DTYPES[:20], [1.5, 2.0], [1, 2**40], "text"]
    values.append(helper.make_tensor("t", rng.choice([1, 7, 10]), [1], [rng.randrange(9)]))
    made = helper.make_attribute(rng.choice(_ATTRIBUTES), rng.choice(values))
    if rng.random() < 0.2:
        made.type = rng.choice(AttributeProto.AttributeType.values())
    if node.attribute and rng.random() < 0.7:
        made.name = rng.choice([made.name, *(a.name for a in node.attribute)])
        if rng.random() < 0.7:
            del node.attribute[rng.randrange(len(node.attribute))]
    node.attribute.append(made)


def _declaration(rng: Random, model: ModelProto) -> None:
    infos = [*model.graph.input, *model.graph.output, *model.graph.value_info]
    if not infos:
        return
    info = rng.choice(infos)
    tensor = info.type.tensor_type
    what = rng.randrange(6)
    if what == 0:
        tensor.elem_type = rng.choice(_DTYPES)
    elif what == 1:
        info.type.Clear()
        if rng.random() < 0.5:
            info.type.sequence_type.elem_type.tensor_type.elem_type = 1
    elif what == 2:
        tensor.ClearField("shape")
    elif what == 3:
        tensor.shape.Clear()
        for _ in range(rng.choice([0, 1, 2, 8, 9, 1000])):
            tensor.shape.dim.add(dim_value=rng.choice(_HUGE))
    elif what == 4:
        for dim in tensor.shape.dim:
            dim.dim_param = rng.choice(_TEXTS)
    else:
        info.name = _name(rng, model)


def _opset(rng: Random, model: ModelProto) -> None:
    what = rng.randrange(3)
    if what == 0 and model.opset_import:
        model.opset_import[0].version = rng.choice([*_NUMBERS, *range(1, 29)])
    elif what == 1:
        model.opset_import.add(domain=rng.choice(_TEXTS), version=rng.choice(_NUMBERS))
    else:
        model.ir_version = rng.choice(_NUMBERS)


def _function(rng: Random, model: ModelProto) -> None:
    """Local functions, also ones that call themselves or each other."""
    names = rng.choice([("F",), ("F", "G"), ("Relu",), ("F", "F")])
    for k, name in enumerate(names):
        function = model.functions.add(
            name=name, domain=rng.choice(["local", "local", "", "ai.onnx"])
        )
        function.input.append("a")
        function.output.append("b")
        called = rng.choice([names[(k + 1) % len(names)], "Relu"])
        domain = "" if called == "Relu" else "local"
        function.node.add(op_type=called, domain=domain, input=["a"], output=["b"])
        if rng.random() < 0.3:
            constant = helper.make_node("Constant", [], ["c"], value=_tensor(rng, model))
            function.node.append(constant)
            function.node.add(op_type="Add", input=["a", "c"], output=["d"])
            function.output[0] = "d"
            if rng.random() < 0.7:
                _make_external(rng, function.node[1].attribute[0].t)
        function.opset_import.add(domain="", version=rng.choice([18, 18, 6, 99]))
        function.opset_import.add(domain="local", version=1)
    model.opset_import.add(domain="local", version=1)
    node = _node(rng, model)
    node.op_type, node.domain = names[0], "local"


def _subgraph(rng: Random, model: ModelProto) -> None:
    node = _node(rng, model)
    graph = node.attribute.add(name="body", type=AttributeProto.GRAPH).g
    for _ in range(rng.choice([0, 1, 5, 20, 40])):  # protobuf itself stops at 100 messages deep
        inner = graph.node.add(op_type=rng.choice(["If", "Relu"]), output=["q"])
        graph = inner.attribute.add(name="then_branch", type=AttributeProto.GRAPH).g


def _chain(rng: Random, model: ModelProto) -> None:
    """A long chain, or one in which every value is used twice."""
    node = _node(rng, model)
    if not node.output:
        return
    before = node.output[0]
    for k in range(rng.choice([1, 10, 100, 1000])):
        after = f"chain{k}"
        model.graph.node.add(
            op_type=rng.choice(["Add", "Max", "Mul"]), input=[before] * 2, output=[after]
        )
        before = after
    if model.graph.output:
        model.graph.output[0].name = before


def _sparse(rng: Random, model: ModelProto) -> None:
    sparse = model.graph.sparse_initializer.add()
    sparse.values.CopyFrom(_tensor(rng, model))
    sparse.dims.append(rng.choice(_HUGE))


def _constant_of_shape(rng: Random, model: ModelProto) -> None:
    dims = [rng.choice(_HUGE) for _ in range(rng.choice([1, 2, 3, 8]))]
    shape = helper.make_tensor("huge_shape", TensorProto.INT64, [len(dims)], dims)
    model.graph.initializer.append(shape)
    nodes = [helper.make_node("ConstantOfShape", ["huge_shape"], ["huge"])]
    if rng.random() < 0.3:
        nodes.append(helper.make_node("Cast", ["huge"], ["again"], to=TensorProto.INT64))
        nodes.append(helper.make_node("ConstantOfShape", ["again"], ["twice"]))
    node = _node(rng, model)
    if node.input:
        node.input[rng.randrange(len(node.input))] = nodes[-1].output[0]
    for made in reversed(nodes):
        model.graph.node.insert(0, made)


_FIELDS: tuple[Callable[[Random, ModelProto], None], ...] = (
    _any_field,
    _any_field,
    _any_field,
    _external,
    _tensor_shape,
    _tensor_dtype,
    _names,
    _operator,
    _attribute,
    _attribute,
    _declaration,
    _opset,
    _function,
    _subgraph,
    _chain,
    _sparse,
    _constant_of_shape,
)

# ---------------------------------------------------------------- a file


def mutated(seed: int, models: Sequence[bytes]) -> bytes:
    """One damaged model file.

    Args:
        seed: Decides everything.
        models: Whole files to start from.
    """
    rng = Random(seed)
    content = rng.choice(models)
    kind = rng.choice(["fields", "fields", "fields", "bytes", "both"])
    if kind != "bytes":
        content = _with_fields_changed(rng, content)
    if kind != "fields":
        content = _with_bytes_changed(rng, content, rng.choice(models))
    return content


def _with_bytes_changed(rng: Random, content: bytes, other: bytes) -> bytes:
    """Most damage is seen by the parser already: mostly search for one that it does not see."""
    changed = content
    for _ in range(rng.choice([1, 20])):
        changed = rng.choice(_BYTES)(rng, content or b"\0", other)
        try:
            ModelProto.FromString(changed)
        except DecodeError:
            continue
        break
    return changed


def _with_fields_changed(rng: Random, content: bytes) -> bytes:
    model = ModelProto.FromString(content)
    for _ in range(rng.choice([1, 1, 1, 2, 3, 5])):
        try:
            rng.choice(_FIELDS)(rng, model)
        except (ValueError, TypeError, DecodeError):
            continue  # protobuf itself does not hold such a value
    return model.SerializeToString(deterministic=True)
