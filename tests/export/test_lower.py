"""Lowering: what is in the finished files."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from armlet_export import lower
from armlet_export.graphs import AGGREGATOR
from armlet_export.pipeline import Material
from armlet_export.qat import prepared_part
from armlet_export.quantise import layer_ranges, learn_ranges, prepare
from armlet_runtime.engines import get_engine
from armlet_runtime.errors import ExportError
from armlet_train.models import ArmletModel


def part(material: Material, name: str) -> nn.Module:
    return material.model.aggregator if name == AGGREGATOR else material.model.encoders[name]


@pytest.mark.parametrize("name", ["gyro", AGGREGATOR])
def test_tflite_has_exactly_the_trained_ranges(material: Material, student: ArmletModel, name: str) -> None:
    graph, signature = prepared_part(student, name), material.description.signature(name)
    program = lower.to_litert(part(material, name), graph, signature)
    file = lower.read_tflite(program.data)
    kinds = {"conv2d": "CONV_2D", "linear": "FULLY_CONNECTED", "mean": "MEAN"}
    operators = [operator for operator in file.operators if operator.kind in kinds.values()]
    layers = layer_ranges(graph)
    assert [operator.kind for operator in operators] == [kinds[layer.operator] for layer in layers]

    def quantisation(index: int) -> tuple[float, int]:
        scale, zero_point = file.scales[index], file.zero_points[index]
        assert scale is not None and zero_point is not None
        return float(scale[0]), int(zero_point[0])

    for operator, layer in zip(operators, layers, strict=True):
        assert quantisation(operator.inputs[0]) == (float(np.float32(layer.input.scale)), layer.input.zero_point)
        assert quantisation(operator.outputs[0]) == (float(np.float32(layer.output.scale)), layer.output.zero_point)
        if layer.weight_scale is not None:
            scales = file.scales[operator.inputs[1]]
            assert scales is not None
            np.testing.assert_array_equal(scales, layer.weight_scale.numpy())


def test_both_integer_formats_give_the_trained_model(material: Material, student: ArmletModel) -> None:
    name = "acc"
    graph, signature = prepared_part(student, name), material.description.signature(name)
    windows = material.validation.windows[name][:20]
    with torch.no_grad():
        wanted = graph(torch.from_numpy(windows)).numpy()
    step = layer_ranges(graph)[-1].output.scale
    programs = {
        "litert": lower.to_litert(part(material, name), graph, signature),
        "executorch": lower.to_executorch(graph, signature),
    }
    for engine, program in programs.items():
        loaded = get_engine(engine).load(program.data, {signature.input: signature.input_shape}, signature.outputs)
        got = np.concatenate([loaded({"window": window[None]})["token"] for window in windows])
        loaded.close()
        # A rounding that falls to the other side in an early layer may move a token by a step or two, and some do.
        assert np.abs(got - wanted).max() <= 2.5 * step
        assert np.abs(got - wanted).mean() <= 0.3 * step
        assert program.precision == "int8" and program.int8_weight_share == 1.0
    assert programs["executorch"].delegates == 1


class _Unlearnt(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(16, 16), nn.Linear(16, 4)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.second(torch.tanh(torch.sigmoid(self.first(tokens))))
        return result


SIGNATURE = lower.Signature("tokens", (1, 16), {"logits": (1, 4)})


def test_a_pte_with_a_float_layer_is_refused() -> None:
    graph = prepare(_Unlearnt(), torch.zeros(1, 16))
    graph(torch.randn(64, 16))
    learn_ranges(graph, False)
    with pytest.raises(ExportError, match="Sigmoid runs on xnn_datatype_fp32"):
        lower.to_executorch(graph, SIGNATURE)


def test_a_tflite_with_a_layer_without_a_trained_range_is_refused() -> None:
    module = _Unlearnt()
    graph = prepare(module, torch.zeros(1, 16))
    graph(torch.randn(64, 16))
    learn_ranges(graph, False)
    with pytest.raises(ExportError, match="training learnt no range for the tensor"):
        lower.to_litert(module, graph, SIGNATURE)


def test_float_programs_do_not_pass_for_int8(material: Material) -> None:
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower

    from armlet_export.graphs import capture

    signature = material.description.signature(AGGREGATOR)
    graph = capture(material.model.aggregator, signature.example())
    program = torch.export.export(graph, (signature.example(),))
    delegated = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()]).to_executorch().buffer
    with pytest.raises(ExportError, match="FullyConnected runs on xnn_datatype_fp32"):
        lower.inspect_executorch(bytes(delegated))
    portable = to_edge_transform_and_lower(program).to_executorch().buffer
    with pytest.raises(ExportError, match="not one XNNPACK delegate: aten::"):
        lower.inspect_executorch(bytes(portable))
    with pytest.raises(ExportError, match="FULLY_CONNECTED runs on another type"):
        lower.inspect_litert(lower._convert_litert(graph, signature))


def test_onnx_is_the_float_model_and_tells_nothing_of_this_machine(material: Material) -> None:
    import onnx

    signature = material.description.signature("acc")
    program = lower.to_onnx(material.model.encoders["acc"], signature)
    assert program.precision == "fp32" and program.operators["Conv"] == 2
    model = onnx.load_from_string(program.data)
    assert model.opset_import[0].version == lower.ONNX_OPSET
    assert b"site-packages" not in program.data and b".py" not in program.data
