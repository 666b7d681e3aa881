"""Writes descriptions for people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from relu_ops import targets
from relu_ops.contract.shapes import in_brackets


def render(description: Mapping[str, Any]) -> str:
    """Write a description for people.

    Args:
        description: What `describe` returned.

    Returns:
        Lines without one at the end. Control characters in names are escaped.
    """
    lines = _headline(description)
    for operator in description["operators"]:
        lines += ["", *_show_operator(operator, alone=len(description["operators"]) == 1)]
    lines += ["", *_show_targets(description)]
    if description["kind"] == "bundle":
        lines += ["", "files", *table(_file_rows(description))]
    if description["producer"]:
        rows = [(name, version) for name, version in description["producer"].items()]
        lines += ["", "made by", *table(rows)]
    return joined(lines)


def _headline(description: Mapping[str, Any]) -> list[str]:
    rows = [("size", in_bytes(description["size"])), ("sha256", description["sha256"])]
    if description["kind"] == "bundle":
        rows.append(("versions", "format {format}, semantics {semantics}".format(**description)))
    else:
        rows.append(("in scope", "yes" if description["in_scope"] else "no"))
    names = [operator["name"] or "without a name" for operator in description["operators"]]
    what = names[0] if len(names) == 1 else f"of {len(names)} operators"
    title = f"{description['kind']} {what}"
    if description["path"] is not None:
        title += f" in {description['path']}"
    lines = [title, *table(rows)]
    if description.get("why_not"):
        lines += [f"    {line}" for line in description["why_not"].splitlines()]
    return lines


def _show_operator(operator: Mapping[str, Any], *, alone: bool) -> list[str]:
    lines = [] if alone else [f"operator {operator['name']}", ""]
    for section in ("inputs", "outputs"):
        tensors = operator[section]
        shown = ["cannot be told here"] if tensors is None else map(_show_tensor, tensors)
        lines += [section, *(f"  {line}" for line in shown), ""]
    return [*lines, *_show_graph(operator)]


def _show_tensor(tensor: Mapping[str, Any]) -> str:
    return f"{tensor['name']}: {tensor['dtype']}{in_brackets(tensor['shape']) or '[...]'}"


def _show_graph(operator: Mapping[str, Any]) -> list[str]:
    graph = operator["graph"]
    if graph is None:
        return ["graph", *(f"  {line}" for line in operator["graph_missing"].splitlines())]
    opsets = ", ".join(f"{domain} {version}" for domain, version in graph["opsets"].items())
    heading = f"graph (opset {opsets}, IR version {graph['ir_version']})"
    doc = [f"  # {line}" for line in graph["doc"].splitlines()]
    constants = [f"  {_show_constant(constant)}" for constant in graph["constants"]]
    return [heading, *doc, *constants, *(f"  {_show_node(node)}" for node in graph["nodes"])]


def _show_constant(constant: Mapping[str, Any]) -> str:
    values = constant.get("values")
    shown = "" if values is None else f" = {values[0] if not constant['shape'] else values}"
    return f"{constant['name']}: {constant['dtype']}{in_brackets(constant['shape'])}{shown}"


def _show_node(node: Mapping[str, Any]) -> str:
    domain = "" if node["domain"] == "ai.onnx" else f"{node['domain']}."
    arguments = [name or "-" for name in node["inputs"]]
    arguments += [f"{name}={_show_value(value)}" for name, value in node["attributes"].items()]
    return f"{', '.join(node['outputs'])} = {domain}{node['operator']}({', '.join(arguments)})"


def _show_value(value: Any) -> str:
    if isinstance(value, Mapping):
        return _show_constant(value).removeprefix(f"{value['name']}: ")
    return str(value)


def _show_targets(description: Mapping[str, Any]) -> list[str]:
    rows = [
        (
            target["name"],
            *([in_bytes(target["size"])] if "size" in target else []),
            _show_where(target),
        )
        for target in description["targets"]
    ]
    heading = "targets" if description["kind"] == "bundle" else "targets it can be built for"
    return [heading, *table(rows)]


def _show_where(target: Mapping[str, Any]) -> str:
    """Where a target runs; of CUDA, which drivers and devices an image is for."""
    devices = targets.parse(target["name"]).backend.devices(target.get("requires", ()))
    if devices is not None:
        return devices
    return "runs here" if target["runs_here"] else f"not here: {target['why_not']}"


def _file_rows(description: Mapping[str, Any]) -> list[tuple[str, ...]]:
    return [
        (entry["path"], in_bytes(entry["size"]), f"sha256 {entry['sha256']}")
        for entry in description["files"]
    ]


def table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows with their columns aligned, indented by two."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        for row in rows
    ]


def in_bytes(count: int) -> str:
    """A number of bytes, in KB of 1000 from 10,000 on.

    >>> in_bytes(9999), in_bytes(12345)
    ('9999 bytes', '12.3 KB')
    """
    return f"{count} bytes" if count < 10_000 else f"{count / 1000:.1f} KB"


def joined(lines: Sequence[str]) -> str:
    """Lines as one text. Control characters in names are escaped."""
    return "\n".join(_clean(line).rstrip() for line in lines)


def _clean(line: str) -> str:
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line)
