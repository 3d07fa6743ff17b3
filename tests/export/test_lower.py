"""Lowering: what is in the finished files."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from armlet_export.backends import executorch, litert
from armlet_export.backends import onnx as onnx_backend
from armlet_export.backends.base import LoweredPart, Part
from armlet_export.backends.program import check_precision
from armlet_export.backends.registry import lower_part
from armlet_export.backends.tflite_file import read_tflite
from armlet_export.pipeline import Trained
from armlet_export.quantise.fake_quant import layer_ranges, output_range
from armlet_export.quantise.qat import prepared_part
from armlet_runtime.bundle.manifest import AGGREGATOR
from armlet_runtime.engines.registry import get_engine
from armlet_runtime.errors import ExportError
from armlet_train.models.base import ArmletModel

from .conftest import tiny_part

Tiny = Callable[[str, str, str], LoweredPart]


def int8_part(material: Trained, student: ArmletModel, name: str) -> Part:
    module = material.model.aggregator if name == AGGREGATOR else material.model.encoders[name]
    return Part(module, material.description.signature(name), "int8", prepared_part(student, name))


@pytest.mark.parametrize("name", ["gyro", AGGREGATOR])
def test_tflite_has_exactly_the_trained_ranges(material: Trained, student: ArmletModel, name: str) -> None:
    graph = prepared_part(student, name)
    file = read_tflite(litert.lower(int8_part(material, student, name)).data)
    kinds = {"conv2d": "CONV_2D", "linear": "FULLY_CONNECTED", "mean": "MEAN"}
    operators = [operator for operator in file.operators if operator.kind in kinds.values()]
    layers = layer_ranges(graph)
    assert [operator.kind for operator in operators] == [kinds[layer.operator] for layer in layers]

    def quantisation(index: int) -> tuple[float, int]:
        scale, zero_point = file.scales[index], file.zero_points[index]
        assert scale is not None and zero_point is not None
        return float(scale[0]), int(zero_point[0])

    for operator, layer in zip(operators, layers, strict=True):
        assert layer.input is not None and layer.output is not None
        assert quantisation(operator.inputs[0]) == (float(np.float32(layer.input.scale)), layer.input.zero_point)
        assert quantisation(operator.outputs[0]) == (float(np.float32(layer.output.scale)), layer.output.zero_point)
        if layer.weight_scale is not None:
            scales = file.scales[operator.inputs[1]]
            assert scales is not None
            np.testing.assert_array_equal(scales, layer.weight_scale.numpy())


def test_onnx_has_exactly_the_trained_ranges(material: Trained, student: ArmletModel) -> None:
    import onnx
    from onnx import numpy_helper

    model = onnx.load_from_string(onnx_backend.lower(int8_part(material, student, AGGREGATOR)).data)
    stored = {item.name: numpy_helper.to_array(item) for item in model.graph.initializer}
    made = {node.output[0]: node for node in model.graph.node}
    layers = layer_ranges(prepared_part(student, AGGREGATOR))
    gemms = [node for node in model.graph.node if node.op_type == "Gemm"]
    assert len(gemms) == len(layers) == 3
    for gemm, layer in zip(gemms, layers, strict=True):
        assert layer.input is not None and layer.weight_scale is not None
        source, weight, bias = (made[name] for name in gemm.input)
        assert {source.op_type, weight.op_type, bias.op_type} == {"DequantizeLinear"}
        assert float(stored[source.input[1]]) == pytest.approx(layer.input.scale, rel=1e-7)
        assert int(stored[source.input[2]]) == layer.input.zero_point
        assert stored[weight.input[0]].dtype == np.int8 and stored[bias.input[0]].dtype == np.int32
        np.testing.assert_allclose(stored[weight.input[1]], layer.weight_scale.numpy(), rtol=1e-7)


def test_all_integer_formats_give_the_trained_model(material: Trained, student: ArmletModel) -> None:
    part = int8_part(material, student, "acc")
    windows = material.validation.windows["acc"][:20]
    with torch.no_grad():
        wanted = part.reference()(torch.from_numpy(windows)).numpy()
    learnt = output_range(part.trained)
    assert learnt is not None
    for engine in ("litert", "executorch", "onnx"):
        program = lower_part(engine, part)
        shapes = {part.signature.input: part.signature.input_shape}, part.signature.outputs
        loaded = get_engine(engine).load(program.data, *shapes)
        got = np.concatenate([loaded({"window": window[None]})["token"] for window in windows])
        loaded.close()
        # A rounding that falls to the other side in an early layer may move a token by a step or two, and some do.
        assert np.abs(got - wanted).max() <= 2.5 * learnt.scale, engine
        assert np.abs(got - wanted).mean() <= 0.3 * learnt.scale, engine
        assert program.precision == "int8" and program.program.int8_weight_share == 1.0
        assert program.program.delegates == (1 if engine == "executorch" else None)


def test_float_programs_do_not_pass_for_int8(material: Trained) -> None:
    signature = material.description.signature(AGGREGATOR)
    part = Part(material.model.aggregator, signature, "fp32")
    for engine in ("litert", "executorch", "onnx"):
        program = lower_part(engine, part).program
        assert program.int8_weight_share == 0.0 and program.operations == 32 * 24 + 24 * 16 + 16 * 3
        with pytest.raises(ExportError, match=r"should be int8, but it stayed in float: 0\.0% of its weight bytes"):
            check_precision(program, "int8")


def test_a_portable_pte_does_not_pass(material: Trained) -> None:
    from executorch.exir import to_edge_transform_and_lower

    from armlet_export.quantise.capture import capture

    signature = material.description.signature(AGGREGATOR)
    graph = capture(material.model.aggregator, signature.example())
    portable = to_edge_transform_and_lower(torch.export.export(graph, (signature.example(),))).to_executorch().buffer
    with pytest.raises(
        ExportError, match=r"not one XNNPACK delegate \(aten::.*the log of ExecuTorch 1.5.1 gives no reason"
    ):
        check_precision(executorch.read(bytes(portable)), "fp32")


def test_onnx_is_the_float_model_and_tells_nothing_of_this_machine(material: Trained) -> None:
    import onnx

    signature = material.description.signature("acc")
    program = onnx_backend.lower(Part(material.model.encoders["acc"], signature, "fp32"))
    assert program.precision == "fp32" and program.program.operators["Conv"] == 2
    model = onnx.load_from_string(program.data)
    assert model.opset_import[0].version == onnx_backend.OPSET
    assert b"site-packages" not in program.data and b".py" not in program.data


def test_a_changed_private_reader_of_executorch_is_named(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    from executorch.exir._serialize import _flatbuffer

    program = tiny("Perceptron", "fp32", "executorch").data
    monkeypatch.delattr(_flatbuffer, "_flatc_decompile")
    with pytest.raises(ExportError, match=r"cannot be read.*undocumented parts of executorch 1\.5\.1, and 1\.5\.1 is"):
        executorch.read(program)


def test_a_changed_list_of_operators_of_litert_is_named(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    from ai_edge_litert.interpreter import Interpreter

    program = tiny("Perceptron", "fp32", "litert").data
    assert litert.delegates(program) == 1
    monkeypatch.delattr(Interpreter, "_get_ops_details")
    with pytest.raises(ExportError, match=r"cannot be listed.*pip install ai-edge-litert==2\.3\.0"):
        litert.delegates(program)


def test_weights_that_a_converter_changes_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """A litert-torch that folds a factor into a layer: its trained ranges are those of other weights."""
    import litert_torch

    convert = litert_torch.convert

    def scaled(module: torch.nn.Module, **options: object) -> object:
        weight = dict(module.named_parameters())["program.head.weight"]
        with torch.no_grad():
            weight.mul_(2)
            try:
                return convert(module, **options)
            finally:
                weight.div_(2)

    monkeypatch.setattr(litert_torch, "convert", scaled)
    with pytest.raises(ExportError, match=r"weights of head\.weight are not in .*litert-torch 0\.10\.0"):
        litert.lower(tiny_part("Plain", "int8"))


def test_the_bytes_of_a_tflite_do_not_depend_on_where_our_code_lies(tiny: Tiny) -> None:
    data = tiny("Plain", "int8", "litert").data
    assert b"armlet_export.lower._Encoder" in data and b"armlet_export.backends" not in data
