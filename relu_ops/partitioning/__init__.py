"""Takes out of a whole network what relu_ops computes faster, and leaves the rest to onnxruntime.

Six steps, one module each: `hosted` asks onnxruntime what it executes, `groups` finds the groups of
nodes that stand there (in the scopes of `graphs`), `operators` makes models of them, `rules` or
`measuring` decide, `rewriting` puts operators in their place, `checking` compares the outputs.
"""

from __future__ import annotations

import functools
import os
import shutil
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from relu_ops import targets as known_targets
from relu_ops.errors import ArgumentError, ArgumentTypeError, BuildError, ModelError, require
from relu_ops.partitioning.report import GroupReport, Report

if TYPE_CHECKING:
    import numpy as np
    import onnx

    from relu_ops.partitioning.groups import Group
    from relu_ops.partitioning.hosted import Executed, Source

__all__ = ["GroupReport", "Report", "partition"]

_REPORT = "report.json"
LEAST_OF_WHOLE = 0.99
"""How many times as fast a whole model must be at least, where that is measured."""

_DRAWS = 2
"""Sets of random inputs on which outputs are compared."""


def partition(
    model: Any,
    path: str | os.PathLike[str],
    targets: Sequence[str] | str = "native",
    *,
    measure: bool = False,
    inputs: Mapping[str, np.ndarray] | None = None,
    dims: Mapping[str, int] | None = None,
    threads: int | None = None,
) -> Report:
    """Write a model in which groups of nodes are operators, for onnxruntime.

    The folder holds `model.onnx`, `operators.bundle`, the model's external data and `report.json`.
    Each group is a node of the domain `relu_ops`, and a local function of its name holds the
    original nodes: without the library of operators the model means the same everywhere. Outputs
    are compared with the model's before the folder is there.

    Args:
        model: The path of a file, an `onnx.ModelProto`, or its bytes.
        path: The folder to write. One that this wrote before is replaced.
        targets: Names of targets, as for `build`.
        measure: Time every group, and the whole, on this machine, and take what wins; else rules
            decide.
        inputs: Arrays for inputs by their names, to compare and to measure with; others are random.
        dims: Extents for symbolic dimensions by their names; those of `inputs` are known, others 1.
        threads: Of onnxruntime's sessions where something is measured; None for its default.

    Returns:
        What was found, taken and left, and why.

    Raises:
        MissingDependencyError: onnx, TVM or onnxruntime is not installed.
        ArgumentError: The folder exists and is something else.
        ModelError: The model is no model, or onnxruntime refuses it.
        TargetError: A target is not known.
        BuildError: The outputs differ, and no known deviation of onnxruntime explains it.
    """
    for package, extra in (("onnx", "verify"), ("onnxruntime", "verify"), ("tvm", "verify")):
        require(package, extra, "relu_ops.partition")
    for name in [targets] if isinstance(targets, str) else targets:
        known_targets.resolve(name)
    final = _free_folder(path)
    final.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{final.name}.", dir=final.parent) as temporary:
        work = _Work(model, Path(temporary) / "written", dims or {}, inputs or {}, threads)
        report = work.run(targets, measure)
        report.path = str(final)
        _write_report(work.folder / _REPORT, report)
        _put_in_place(work.folder, final)
    return report


@dataclass
class _Form:
    """Groups that one operator computes.

    Attributes:
        name: Of the operator.
        model: What it computes.
        groups: The groups, by their numbers in the report.
    """

    name: str
    model: onnx.ModelProto
    groups: list[int] = field(default_factory=list)


class _Work:
    """One model on its way to a folder."""

    def __init__(
        self,
        model: Any,
        folder: Path,
        dims: Mapping[str, int],
        inputs: Mapping[str, np.ndarray],
        threads: int | None,
    ) -> None:
        self.folder, self._inputs, self._threads = folder, inputs, threads
        self._model = model
        self._source, self._proto = _read(model)
        self._dims = {**_dims_of(self._proto, inputs), **dims}
        self._make_folder()

    def _make_folder(self) -> None:
        """A folder with the model's external data, and nothing else yet."""
        self.folder.mkdir()
        _link_external(self._source, self._proto, self.folder)

    def run(self, targets: Sequence[str] | str, measure: bool) -> Report:
        """All steps: find, decide, build, rewrite, check."""
        from relu_ops.partitioning import hosted

        executed = hosted.executed(self._source)
        self._network = _network(self._proto, executed)
        self._groups = _groups(self._network, executed)
        self._report = Report(groups=[_described(group) for group in self._groups])
        self._forms = self._found_forms()
        if measure:
            self._measure_groups()
        else:
            self._apply_rules()
        self._write(targets)
        self._check()
        if measure and self._report.taken and self._measure_whole() < LEAST_OF_WHOLE:
            self._leave_all(targets)
        return self._report

    # ---- deciding

    def _found_forms(self) -> list[_Form]:
        """An operator for every form of group that can be compiled."""
        from relu_ops.partitioning import operators

        models, members = {}, dict[bytes, list[int]]()
        for number, group in enumerate(self._groups):
            model = operators.model_of(group)
            content = operators.content_of(model)
            models[content] = model
            members.setdefault(content, []).append(number)
        named = operators.named(models.values())
        forms = []
        for name, model in named.items():
            numbers = members[operators.content_of(model)]
            if reason := operators.why_not(model):
                for number in numbers:
                    self._report.groups[number].why = reason
            else:
                forms.append(_Form(name, model, numbers))
        return forms

    def _apply_rules(self) -> None:
        from relu_ops.partitioning import rules

        for form in self._forms:
            for number in form.groups:
                taken, why = rules.decide(self._groups[number], self._dims)
                self._decide(form, number, taken, why)

    def _decide(self, form: _Form, number: int, taken: bool, why: str) -> None:
        one = self._report.groups[number]
        one.taken, one.why, one.operator = taken, why, form.name if taken else None

    def _measure_groups(self) -> None:
        """Time each form on each of the shapes that its groups have in a run."""
        from relu_ops import compiler
        from relu_ops.interop.onnxruntime import node_type
        from relu_ops.partitioning import measuring, rules

        if not self._forms:
            return
        shapes = self._shapes()
        with tempfile.TemporaryDirectory() as folder:
            bundle = Path(folder) / "candidates.bundle"
            digest = compiler.build({f.name: f.model for f in self._forms}, ["native"], bundle)
            for form in self._forms:
                kind, times = node_type(form.name, digest), dict[Any, measuring.Times]()
                for number in form.groups:
                    key = _shapes_of(self._groups[number], shapes)
                    if key is None:  # in a body, where no run shows it
                        self._decide(form, number, *rules.decide(self._groups[number], self._dims))
                        continue
                    if key not in times:
                        given = (form.model, kind, bundle, digest, key, self._threads)
                        times[key] = measuring.compare_group(*given)
                    self._decide_by(form, number, times[key])

    def _decide_by(self, form: _Form, number: int, times: Any) -> None:
        from relu_ops.partitioning.measuring import LEAST_GAIN

        self._decide(form, number, times.gain >= LEAST_GAIN, "measured")
        one = self._report.groups[number]
        one.stock_seconds, one.own_seconds = times

    def _shapes(self) -> dict[str, tuple[int, ...]]:
        """The shapes of what groups of the graph itself are given, in a run of the model."""
        from relu_ops.partitioning import hosted

        wanted = {n for group in self._groups if not group.scope.name for n in group.inputs}
        return hosted.shapes_of(self._proto, self.folder, wanted, self._feeds(0))

    # ---- writing

    def _write(self, targets: Sequence[str] | str) -> None:
        from relu_ops import compiler
        from relu_ops.interop.onnxruntime import BUNDLE, DOMAIN, MODEL, node_type
        from relu_ops.partitioning import operators, rewriting

        taken = {one.operator for one in self._report.taken}
        forms = [form for form in self._forms if form.name in taken]
        if forms:
            models = {form.name: form.model for form in forms}
            digest = compiler.build(models, targets, self.folder / BUNDLE)
            self._report.digest = digest
            choices = [
                (self._groups[number], node_type(form.name, digest))
                for form in forms
                for number in form.groups
                if self._report.groups[number].taken
            ]
            functions = [
                operators.function_of(form.model, DOMAIN, node_type(form.name, digest))
                for form in forms
            ]
            rewriting.rewrite(self._network, choices, functions, digest)
        (self.folder / MODEL).write_bytes(self._proto.SerializeToString())

    # ---- checking

    def _feeds(self, seed: int) -> dict[str, np.ndarray]:
        from relu_ops.partitioning import hosted

        session = hosted.session_of(self._source, hosted.options_of(1))
        return hosted.random_inputs(session, self._dims, self._inputs, seed)

    def _check(self) -> None:
        from relu_ops.partitioning import checking

        if self._report.digest is None:
            self._report.checked = "the model's own: nothing was taken"
            return
        feeds = [self._feeds(seed) for seed in range(_DRAWS)]
        try:
            causes = checking.check(self._source, self.folder, self._report.digest, feeds)
        except checking.Difference as error:
            raise BuildError(f"the partitioned model gives other outputs: {error}") from error
        self._report.causes = dict(causes)
        self._report.checked = (
            "differ from onnxruntime's by its known deviations alone"
            if causes
            else "the same bits as onnxruntime's"
        )

    def _measure_whole(self) -> float:
        """Time the whole; how many times as fast it became."""
        from relu_ops.interop import onnxruntime as door
        from relu_ops.partitioning import hosted, measuring

        assert self._report.digest is not None
        feeds = self._feeds(0)
        stock = hosted.session_of(self._source, hosted.options_of(self._threads, timed=True))
        options = hosted.options_of(self._threads, timed=True)
        hosted.with_bundle(options, self.folder / door.BUNDLE, self._report.digest)
        own = hosted.session_of(self.folder / door.MODEL, options)
        times = measuring.in_turn(measuring.bound(stock, feeds), measuring.bound(own, feeds))
        self._report.stock_seconds, self._report.own_seconds = times
        return times.gain

    def _leave_all(self, targets: Sequence[str] | str) -> None:
        """Write the model as it is: its groups gain alone, and not together."""
        for one in self._report.taken:
            one.taken, one.operator, one.why = False, None, "the whole model does not gain by it"
        self._report.digest = None
        shutil.rmtree(self.folder)
        _, self._proto = _read(self._model)
        self._make_folder()
        self._write(targets)
        self._check()


# ---------------------------------------------------------------------------------------------
# Finding


def _read(model: Any) -> tuple[Source, onnx.ModelProto]:
    """A model as onnxruntime takes it, and its structure: weights that lie outside stay there."""
    import onnx

    if isinstance(model, str | os.PathLike):
        path = Path(model)
        if not path.is_file():
            raise ModelError(f"{path}: is not a file", "pass the path of an ONNX model")
        try:
            return path, onnx.load(path, load_external_data=False)
        except Exception as error:  # protobuf's, which is another one with each implementation
            raise ModelError(f"{path}: is no ONNX model: {error}") from error
    if isinstance(model, onnx.ModelProto):
        model = model.SerializeToString()
    if not isinstance(model, bytes):
        raise ArgumentTypeError(
            f"model must be a path, an onnx.ModelProto or bytes (not {type(model).__name__})"
        )
    try:
        return model, onnx.ModelProto.FromString(model)
    except Exception as error:
        raise ModelError(f"the bytes are no ONNX model: {error}") from error


def _dims_of(proto: onnx.ModelProto, inputs: Mapping[str, np.ndarray]) -> dict[str, int]:
    """The extents of symbolic dimensions, as given arrays have them."""
    found = {}
    for info in proto.graph.input:
        if info.name in inputs:
            dims = info.type.tensor_type.shape.dim
            for dim, extent in zip(dims, inputs[info.name].shape, strict=False):
                if dim.dim_param:
                    found[dim.dim_param] = extent
    return found


def _network(proto: onnx.ModelProto, executed: Executed) -> Any:
    from relu_ops.partitioning import graphs

    return graphs.Network(proto, {**executed.values, **graphs.inferred(proto)})


def _groups(network: Any, executed: Executed) -> list[Group]:
    from relu_ops.partitioning import groups

    found = []
    for scope in network.scopes:
        found += groups.find(scope, functools.partial(executed.stands, scope))
    return found


def _described(group: Group) -> GroupReport:
    nodes = [node.op_type for node in group.nodes]
    shape = group.shape.show()
    return GroupReport(group.scope.name, nodes, list(group.outputs), shape, False, "")


def _shapes_of(group: Group, known: Mapping[str, tuple[int, ...]]) -> Any:
    if group.scope.name or any(name not in known for name in group.inputs):
        return None
    return tuple(known[name] for name in group.inputs)


# ---------------------------------------------------------------------------------------------
# Folders


def _free_folder(path: Any) -> Path:
    if not isinstance(path, str | os.PathLike):
        raise ArgumentTypeError(
            f"the folder's path must be a path (not {type(path).__name__})",
            "pass the path of the folder to make",
        )
    final = Path(os.path.abspath(path))
    if os.path.lexists(final) and not (final / _REPORT).is_file():
        raise ArgumentError(
            f"{final}: exists and is no partitioned model, so it is not replaced",
            "choose another path",
        )
    return final


def _put_in_place(made: Path, final: Path) -> None:
    if final.exists():
        aside = made.with_name("replaced")
        final.rename(aside)
    made.rename(final)


def _write_report(path: Path, report: Report) -> None:
    import json

    path.write_text(json.dumps(report.as_dict(), indent=1) + "\n")


def _link_external(source: Source, proto: onnx.ModelProto, folder: Path) -> None:
    """Give a folder the files of a model's external data: as other names of the same, if it can."""
    if isinstance(source, bytes):
        return
    for name in sorted(_external_files(proto)):
        there, here = source.parent / name, folder / name
        here.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(there, here)
        except OSError:  # another file system, or one without links
            shutil.copyfile(there, here)


def _external_files(proto: onnx.ModelProto) -> Iterable[str]:
    from onnx.external_data_helper import _get_all_tensors, uses_external_data

    files = set()
    for tensor in _get_all_tensors(proto):
        if not uses_external_data(tensor):
            continue
        place = {entry.key: entry.value for entry in tensor.external_data}["location"]
        if os.path.isabs(place) or ".." in Path(place).parts:
            raise ModelError(
                f"tensor {tensor.name!r} has its data at {place!r}, outside of the model's folder",
                "save the model anew with its data beside it",
            )
        files.add(place)
    return files
