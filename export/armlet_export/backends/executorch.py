"""The ExecuTorch backend: programs are ``.pte`` files, the whole of each in one XNNPACK delegate."""

from __future__ import annotations

import json
import logging
import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx

from armlet_runtime.errors import ExportError

from ..quantise import capture, convert, dynamic, rewrite
from .base import Lowered, Part
from .program import Node, Program, Value, check_precision

_XNN_TYPES = {
    "fp32": "float32", "fp16": "float16", "qint8": "int8", "quint8": "uint8", "qcint8": "int8", "qint32": "int32",
    "qcint32": "int32", "qdint8": "int8", "qpint8": "int8", "int32": "int32",
}  # fmt: skip
_XNN_INPUT = re.compile(r"input\d?_id|filter_id|bias_id|negative_slope_id")


def lower(part: Part) -> Lowered:
    """A ``.pte``, the whole of it in one XNNPACK delegate.

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
    return Lowered(data, part.precision, program)


def _delegated(graph: fx.GraphModule, examples: tuple[Tensor, ...]) -> tuple[bytes, dict[str, str]]:
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import ExecutorchBackendConfig, to_edge_transform_and_lower
    from executorch.exir.passes import MemoryPlanningPass

    # Once more for one window: what was open in training (the batch) is a number now, and some nodes do nothing.
    program = torch.export.export(graph, examples)
    fixed = program.module(check_guards=False)
    assert isinstance(fixed, fx.GraphModule)
    rewrite(fixed)
    _keep_apart(fixed)
    with _partitioner_reasons() as reasons:
        edge = to_edge_transform_and_lower(torch.export.export(fixed, examples), partitioner=[XnnpackPartitioner()])
        # Inputs are read where the caller has them: nothing is copied, and no memory planned for them. Outputs are
        # planned, for executorch-numpy-runtime 1.4.0 ends the process if they are not.
        planning = MemoryPlanningPass(alloc_graph_input=False)
        return bytes(edge.to_executorch(ExecutorchBackendConfig(memory_planning_pass=planning)).buffer), reasons


def _keep_apart(graph: fx.GraphModule) -> None:
    """Write a ReLU as ``(x + |x|) / 2`` where ``x`` is wanted, too: ExecuTorch 1.5 puts it into the layer of both."""
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
    """Operator to why the partitioner left it outside of the delegate, which it says only in its log."""
    reasons: dict[str, str] = {}

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            found = re.search(
                r"(?:target|node)[^\n]*?aten\.?_?([a-z0-9_]+?)(?:_copy)?(?:\.\w+)?\b.*?(?:due to|reason:?)\s*(.+)",
                record.getMessage(),
                re.S,
            )
            if found:
                reasons[found[1]] = " ".join(found[2].split())

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
        ExportError: It has more than one method.
    """
    from executorch.exir._serialize._program import deserialize_pte_binary

    program = deserialize_pte_binary(data).program
    if len(program.execution_plan) != 1:
        raise ExportError(f"the .pte has {len(program.execution_plan)} methods, and one is run")
    (plan,) = program.execution_plan
    nodes: list[Node] = []
    values: dict[str, Value] = {}
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
                why = (reasons or {}).get(name.split("::")[-1].removesuffix("_copy"), "the partitioner left it there")
                nodes.append(Node(name, (), (), outside=why))
    for name in foreign:
        nodes.append(Node(name, (), (), outside="a delegate of another back end"))
    return Program("pte", tuple(nodes), values, len(plan.delegates), sum(plan.non_const_buffer_sizes))


def _xnnpack_nodes(blob: bytes, prefix: str) -> tuple[list[Node], dict[str, Value]]:
    graph = _xnnpack_graph(blob)
    values: dict[str, Value] = {}
    for item in graph["xvalues"]:
        tensor = item["xvalue_union"]
        tensor = tensor.get("tensor_value", tensor)
        kind = _XNN_TYPES.get(tensor["datatype"].removeprefix("xnn_datatype_"), tensor["datatype"])
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
    """The graph inside an XNNPACK delegate, as JSON of ExecuTorch's own schema for it."""
    from executorch.backends.xnnpack.serialization import xnnpack_graph_serialize
    from executorch.exir._serialize._flatbuffer import _flatc_decompile

    header = xnnpack_graph_serialize.XNNHeader.from_bytes(blob[: xnnpack_graph_serialize.XNNHeader.EXPECTED_LENGTH])
    with tempfile.TemporaryDirectory() as folder:
        schema, binary = Path(folder) / "schema.fbs", Path(folder) / "graph.bin"
        schema.write_bytes(xnnpack_graph_serialize._get_schema_bytes())
        binary.write_bytes(blob[header.flatbuffer_offset : header.flatbuffer_offset + header.flatbuffer_size])
        _flatc_decompile(folder, str(schema), str(binary))
        text = binary.with_suffix(".json").read_text()
    # flatc writes the bounds of an unclamped layer as inf, which is not JSON.
    graph: dict[str, Any] = json.loads(re.sub(r":\s*(-?)inf\b", r": \1Infinity", text))
    return graph
