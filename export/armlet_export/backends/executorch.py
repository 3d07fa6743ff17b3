"""The ExecuTorch backend: programs are ``.pte`` files, the whole of each in one XNNPACK delegate.

Undocumented parts of ExecuTorch used here, as of version 1.5.1: the text of the partitioner's log
(:func:`_partitioner_reasons`), the reader of ``.pte`` files and of XNNPACK's delegate in them (:func:`read`,
:func:`_xnnpack_graph`). Each raises an :class:`ExportError` that names the version if ExecuTorch changes.
"""

from __future__ import annotations

import json
import logging
import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx

from armlet_runtime.errors import ExportError

from ..quantise import capture, convert, dynamic, rewrite
from .base import LoweredPart, Part, library_changed
from .program import Node, Program, Value, check_precision

KNOWN_VERSION = "1.5.1"
"""The version of ExecuTorch whose undocumented parts this module knows."""

_XNN_TYPES = {
    "fp32": "float32", "fp16": "float16", "qint8": "int8", "quint8": "uint8", "qcint8": "int8", "qint32": "int32",
    "qcint32": "int32", "qdint8": "int8", "qpint8": "int8", "int32": "int32",
}  # fmt: skip
_XNN_INPUT = re.compile(r"input\d?_id|filter_id|bias_id|negative_slope_id")


def lower(part: Part) -> LoweredPart:
    """The ``.pte`` program of a part, the whole of it in one XNNPACK delegate.

    Raises:
        ExportError: A part of the program is outside the delegate, or stayed in float.
    """
    if part.precision == "fp16":
        raise ExportError(
            "executorch has no fp16 program with float32 ends (XNNPACK's delegate converts no types): take int8, "
            "dynamic or fp32 in [export] precision, or leave executorch out with --engine"
        )
    examples = part.signature.examples()
    if part.precision == "int8":
        graph = convert(part.trained)
    elif part.precision == "dynamic":
        graph = dynamic(part.module, *examples)
    else:
        graph = capture(part.module, *examples)
    try:
        data, reasons = _delegated(graph, examples)
    except Exception as error:
        if part.precision != "dynamic":
            raise
        raise ExportError(
            "executorch cannot lower this part with dynamic int8 (ExecuTorch 1.5 has it for linear layers only): take "
            "int8 or fp32 in [export] precision"
        ) from error
    program = read(data, reasons)
    check_precision(program, part.precision, part.layers)
    return LoweredPart(data, part.precision, program)


def _delegated(graph: fx.GraphModule, examples: tuple[Tensor, ...]) -> tuple[bytes, dict[str, str]]:
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import ExecutorchBackendConfig, to_edge_transform_and_lower
    from executorch.exir.passes import MemoryPlanningPass

    # Captured again for a batch of one: the batch size is a number now, and nodes that depended on it drop out.
    program = torch.export.export(graph, examples)
    fixed = program.module(check_guards=False)
    assert isinstance(fixed, fx.GraphModule)
    rewrite(fixed)
    _keep_apart(fixed)
    with _partitioner_reasons() as reasons:
        edge = to_edge_transform_and_lower(torch.export.export(fixed, examples), partitioner=[XnnpackPartitioner()])
        # Inputs are read in place, so no memory is planned for them. Memory for outputs is planned, because
        # executorch-numpy-runtime 1.4.0 ends the process otherwise.
        planning = MemoryPlanningPass(alloc_graph_input=False)
        return bytes(edge.to_executorch(ExecutorchBackendConfig(memory_planning_pass=planning)).buffer), reasons


def _keep_apart(graph: fx.GraphModule) -> None:
    """Write a ReLU as ``(x + |x|) / 2`` where ``x`` itself is used, too.

    ExecuTorch 1.5.1 fuses the ReLU into the layer before it without asking who else reads that layer, so that the other
    reader gets values after the ReLU. With a version that does ask, this form is slower and still right.
    """
    for node in list(graph.graph.nodes):
        if node.target is torch.ops.aten.relu.default and len(node.args[0].users) > 1:
            with graph.graph.inserting_before(node):
                size = graph.graph.call_function(torch.ops.aten.abs.default, node.args)
                both = graph.graph.call_function(torch.ops.aten.add.Tensor, (node.args[0], size))
                half = graph.graph.call_function(torch.ops.aten.mul.Tensor, (both, 0.5))
            node.replace_all_uses_with(half)
            graph.graph.erase_node(node)
    graph.recompile()


@contextmanager
def _partitioner_reasons() -> Iterator[dict[str, str]]:
    """Operator to why the partitioner left it outside of the delegate.

    ExecuTorch 1.5.1 gives the reason only in a debug message of the logger below, whose text this parses. If the text
    changes, :func:`read` says that the reason is unknown; that the operator is outside is read from the file.
    """
    reasons: dict[str, str] = {}

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            match = re.search(
                r"(?:target|node)[^\n]*?aten\.?_?([a-z0-9_]+?)(?:_copy)?(?:\.\w+)?\b.*?(?:due to|reason:?)\s*(.+)",
                record.getMessage(),
                re.S,
            )
            if match:
                reasons[match[1]] = " ".join(match[2].split())

    logger = logging.getLogger("executorch.exir.backend.utils")
    handler, level, passes_on = Keep(), logger.level, logger.propagate
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    logger.propagate = False
    try:
        yield reasons
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
        logger.propagate = passes_on


def read(data: bytes, reasons: Mapping[str, str] | None = None) -> Program:
    """Read a ``.pte`` file.

    Args:
        data: The file.
        reasons: Operator to why the partitioner left it outside, if that is known.

    Raises:
        ExportError: The file has more than one method.
    """
    try:
        from executorch.exir._serialize._program import deserialize_pte_binary
    except ImportError as error:
        raise library_changed("executorch", KNOWN_VERSION, f"the .pte file cannot be read ({error})") from error

    program = deserialize_pte_binary(data).program
    if len(program.execution_plan) != 1:
        raise ExportError(f"the .pte file has {len(program.execution_plan)} methods; exactly one is supported")
    (plan,) = program.execution_plan
    nodes: list[Node] = []
    values: dict[str, Value] = {}
    unknown = f"the log of ExecuTorch {version('executorch')} gives no reason"
    foreign = [delegate.id for delegate in plan.delegates if delegate.id != "XnnpackBackend"]
    for chain in plan.chains:
        for item in chain.instructions:
            call = item.instr_args
            kind = type(call).__name__
            if kind == "DelegateCall":
                index = plan.delegates[call.delegate_index].processed.index
                inner, known = _xnnpack_nodes(program.backend_delegate_data[index].data, f"d{call.delegate_index}.")
                nodes += inner
                values |= known
            elif kind == "KernelCall":
                name = plan.operators[call.op_index].name
                why = (reasons or {}).get(name.split("::")[-1].removesuffix("_copy"))
                nodes.append(Node(name, (), (), outside=why or unknown))
    for name in foreign:
        nodes.append(Node(name, (), (), outside="a delegate of another back end"))
    return Program("pte", tuple(nodes), values, len(plan.delegates), sum(plan.non_const_buffer_sizes))


def _xnnpack_nodes(blob: bytes, prefix: str) -> tuple[list[Node], dict[str, Value]]:
    graph = _xnnpack_graph(blob)
    values: dict[str, Value] = {}
    for item in graph["xvalues"]:
        tensor = item["xvalue_union"]
        tensor = tensor.get("tensor_value", tensor)
        kind = _XNN_TYPES.get(tensor["datatype"].removeprefix("xnn_datatype_"))
        if kind is None:
            raise library_changed("executorch", KNOWN_VERSION, f"XNNPACK's type {tensor['datatype']} is unknown")
        shape = tuple(tensor.get("dims") or ())
        values[f"{prefix}{tensor['id_out']}"] = Value(kind, shape, tensor.get("constant_buffer_idx", 0) != 0)
    nodes = []
    for item in graph["xnodes"]:
        union = item["xnode_union"]
        inputs = tuple(f"{prefix}{union[key]}" for key in union if _XNN_INPUT.fullmatch(key))
        weight = f"{prefix}{union['filter_id']}" if "filter_id" in union else None
        known = tuple(name for name in inputs if name in values)
        nodes.append(Node(item["xnode_union_type"], known, (f"{prefix}{union['output_id']}",), weight))
    return nodes, values


def _xnnpack_graph(blob: bytes) -> dict[str, Any]:
    """The graph inside an XNNPACK delegate, as JSON of ExecuTorch's own schema for it.

    ExecuTorch 1.5.1 has no public reader of its delegates: the header, the schema and the wrapper of flatc are private.

    Raises:
        ExportError: ExecuTorch no longer has them.
    """
    try:
        from executorch.backends.xnnpack.serialization.xnnpack_graph_serialize import XNNHeader, _get_schema_bytes
        from executorch.exir._serialize._flatbuffer import _flatc_decompile
    except ImportError as error:
        raise library_changed("executorch", KNOWN_VERSION, f"XNNPACK's delegate cannot be read ({error})") from error

    header = XNNHeader.from_bytes(blob[: XNNHeader.EXPECTED_LENGTH])
    with tempfile.TemporaryDirectory() as folder:
        schema, binary = Path(folder) / "schema.fbs", Path(folder) / "graph.bin"
        schema.write_bytes(_get_schema_bytes())
        binary.write_bytes(blob[header.flatbuffer_offset : header.flatbuffer_offset + header.flatbuffer_size])
        _flatc_decompile(folder, str(schema), str(binary))
        text = binary.with_suffix(".json").read_text()
    # flatc writes the bounds of an unclamped layer as inf, which is not JSON.
    graph: dict[str, Any] = json.loads(re.sub(r":\s*(-?)inf\b", r": \1Infinity", text))
    return graph
