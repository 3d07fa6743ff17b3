"""Faults of the tool chain that our graphs could meet, one test each.

Numbers with # are of github.com/pytorch/executorch, litert-torch's and LiteRT's are named; what has no number was met
here. Where a later release mends one, its test goes on to hold.
"""

from __future__ import annotations

import math
import platform
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from armlet_export.backends.base import LoweredPart
from armlet_export.backends.program import check_precision
from armlet_export.backends.registry import lower_part
from armlet_export.backends.tflite_file import FLOAT32, INT8, read_tflite
from armlet_export.quantise.capture import capture, weighted_nodes
from armlet_export.quantise.fake_quant import convert, layer_ranges, output_range, prepare
from armlet_export.quantise.graph_builder import aten
from armlet_runtime.engines.registry import get_engine
from armlet_runtime.errors import EngineError, ExportError

from .conftest import run_tiny, tiny_part
from .modules import Attention, Norms, Plain

pytestmark = pytest.mark.full("is about other projects, whose versions are pinned")

Tiny = Callable[[str, str, str], LoweredPart]
ENGINES = ("litert", "executorch", "onnx")
MODULES = ("Plain", "Norms", "Attention")


def inputs(name: str, count: int = 8) -> torch.Tensor:
    return torch.randn(
        count, *tiny_part(name, "int8").signature.input_shape[1:], generator=torch.Generator().manual_seed(3)
    )


# ------------------------------------------------------------------------------------------ programs that are wrong


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", MODULES)
def test_int8_results_differ_from_the_model_that_was_trained(tiny: Tiny, name: str, engine: str) -> None:
    """litert-torch 446, 221; #16406."""
    part, values = tiny_part(name, "int8"), inputs(name)
    with torch.no_grad():
        wanted = part.reference()(values)
    wanted = wanted if isinstance(wanted, tuple) else (wanted,)
    for mine, reference in zip(run_tiny(engine, tiny(name, "int8", engine), part, values), wanted, strict=True):
        step = np.ptp(reference.numpy()) / 255
        assert np.abs(mine - reference.numpy()).mean() <= step


@pytest.mark.parametrize("engine", ENGINES)
def test_float_results_differ_from_the_model(tiny: Tiny, engine: str) -> None:
    """litert-torch 446."""
    part, values = tiny_part("Norms", "fp32"), inputs("Norms")
    with torch.no_grad():
        wanted = part.module(values).numpy()
    (mine,) = run_tiny(engine, tiny("Norms", "fp32", engine), part, values)
    assert np.abs(mine - wanted).max() <= 1e-4


@pytest.mark.parametrize("engine", ENGINES)
def test_non_contiguous_inputs_are_read_as_if_they_were_contiguous(tiny: Tiny, engine: str) -> None:
    """#18562."""
    part = tiny_part("Plain", "int8")
    values = inputs("Plain", 1)
    wide = values.repeat_interleave(2, dim=2)
    wide[..., 1::2] = 1e9
    strided = wide[..., ::2]
    assert not strided.is_contiguous()
    program = tiny("Plain", "int8", engine)
    for mine, other in zip(*(run_tiny(engine, program, part, given) for given in (values, strided)), strict=True):
        np.testing.assert_array_equal(mine, other)


@pytest.mark.parametrize("engine", ENGINES)
def test_outputs_change_their_order(tiny: Tiny, engine: str) -> None:
    """#14741; litert-torch numbers a signature's outputs as it likes."""
    part = tiny_part("Attention", "int8")
    logits, embedding = run_tiny(engine, tiny("Attention", "int8", engine), part, inputs("Attention", 2))
    assert logits.shape == (2, 6) and embedding.shape == (2, 32)


@pytest.mark.parametrize("engine", ENGINES)
def test_values_beyond_the_range_wrap_around(tiny: Tiny, engine: str) -> None:
    part = tiny_part("Plain", "int8")
    values = torch.stack([torch.full((3, 32), value) for value in (1e4, 1e30)])
    for mine in run_tiny(engine, tiny("Plain", "int8", engine), part, values):
        assert np.isfinite(mine).all()
        np.testing.assert_array_equal(mine[0], mine[1])  # both are clipped to the same end


@pytest.mark.parametrize("engine", ENGINES)
def test_a_dead_channel_has_no_scale(tiny: Tiny, engine: str) -> None:
    """A channel of zeros divided by its largest weight."""
    _, embedding = run_tiny(engine, tiny("Plain", "int8", engine), tiny_part("Plain", "int8"), inputs("Plain"))
    module = tiny_part("Plain", "int8").module
    assert isinstance(module, Plain)
    bias = max(0.0, float(module.embedding.bias[0]))
    learnt = layer_ranges(tiny_part("Plain", "int8").trained)[-2].output
    assert learnt is not None and np.abs(embedding[:, 0] - bias).max() <= learnt.scale


def test_the_fused_fake_quantiser_rounds_negative_weights_otherwise() -> None:
    """torch: |smallest| / 128 in training, largest / 127 in the program."""
    graph = tiny_part("Plain", "int8").trained
    layer = next(layer for layer in layer_ranges(graph) if layer.weight == "head.weight")
    assert layer.weight_scale is not None and float(layer.weight_scale[1]) == pytest.approx(2.0 / 127, rel=1e-6)
    values = inputs("Plain")
    with torch.no_grad():
        for mine, other in zip(graph(values), convert(graph)(values), strict=True):
            torch.testing.assert_close(mine, other, rtol=0, atol=1e-5)


@pytest.mark.parametrize("engine", ENGINES)
def test_padding_same_with_an_even_kernel_shifts_the_signal(tiny: Tiny, engine: str) -> None:
    """#20517: and with a ReLU behind it, the int8 program fails when it runs."""
    part = tiny_part("Plain", "int8")
    impulse = torch.zeros(1, 3, 32)
    impulse[0, :, 0] = 2.0
    with torch.no_grad():
        wanted = part.reference()(impulse)[1].numpy()
    learnt = layer_ranges(part.trained)[-2].output
    assert learnt is not None
    mine = run_tiny(engine, tiny("Plain", "int8", engine), part, impulse)[1]
    assert np.abs(mine - wanted).max() <= 2 * learnt.scale


# --------------------------------------------------------------------------------- programs that are not what they say


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", MODULES)
def test_layers_stay_in_float_without_a_word(tiny: Tiny, name: str, engine: str) -> None:
    """#8138 and module-name configurations that miss layers: every layer's weight is int8."""
    program = tiny(name, "int8", engine).program
    layers = len(
        list(
            weighted_nodes(
                capture(tiny_part(name, "int8").module, torch.zeros(tiny_part(name, "int8").signature.input_shape))
            )
        )
    )
    assert program.int8_weight_share == 1.0
    assert (
        sum(node.weight is not None and program.values[node.weight].type == "int8" for node in program.nodes) == layers
    )


@pytest.mark.parametrize("engine", ENGINES)
def test_a_float_program_passes_for_int8(tiny: Tiny, engine: str) -> None:
    with pytest.raises(ExportError, match="should be int8, but it stayed in float"):
        check_precision(tiny("Norms", "fp32", engine).program, "int8")


@pytest.mark.parametrize(
    ("name", "precision"), [("Norms", "int8"), ("Norms", "fp32"), ("Attention", "int8"), ("CrissCross", "fp32")]
)
def test_a_transformer_falls_into_islands(tiny: Tiny, name: str, precision: str) -> None:
    """#4461 (attention), #7880 (islands): one delegate, and no operator outside of it."""
    program = tiny(name, precision, "executorch").program
    assert program.delegates == 1 and program.outside == {}


def test_matmul_of_two_activations_stays_outside(tiny: Tiny) -> None:
    """#8138."""
    assert tiny("Attention", "int8", "executorch").program.operators["XNNBatchMatrixMultiply"] == 4


def test_a_four_dimensional_matmul_expands_its_operands() -> None:
    graph = capture(Attention(), torch.zeros(Attention.shape))
    assert not {aten.expand.default, aten.matmul.default} & {node.target for node in graph.graph.nodes}


def test_a_slice_with_another_zero_point_does_not_load(tiny: Tiny) -> None:
    """#12271: exported cleanly, refused by the runtime. The program has a slice, and runs."""
    program = tiny("Attention", "int8", "executorch")
    assert program.program.operators["XNNStaticSlice"] == 1
    run_tiny("executorch", program, tiny_part("Attention", "int8"), inputs("Attention", 1))


def test_a_recurrent_layer_is_quantised_wrongly() -> None:
    """#10104: it is refused instead, with the operator's name."""
    with pytest.raises(ExportError, match=r"not one XNNPACK delegate|stayed in float"):
        lower_part("executorch", tiny_part("Gated", "int8"))


def test_an_average_pool_that_counts_its_padding_stays_outside() -> None:
    """AvgPool2d's default; the global one becomes a mean, for which there is an integer kernel."""
    targets = {node.target for node in capture(Plain(), torch.zeros(Plain.shape)).graph.nodes}
    assert aten.mean.dim in targets and aten.avg_pool1d.default not in targets


def test_a_mean_shares_the_range_of_its_input() -> None:
    """The mean of many values spreads far less than they do, and would keep a few steps of its int8."""
    (mean,) = (layer for layer in layer_ranges(tiny_part("Plain", "int8").trained) if layer.operator == "mean")
    assert mean.input is not None and mean.output is not None and mean.output.scale < 0.7 * mean.input.scale


def test_unsqueeze_and_reshapes_lie_between_convolutions(tiny: Tiny) -> None:
    """A transpose and a copy each way, around every one-dimensional convolution."""
    graph = capture(Plain(), torch.zeros(Plain.shape))
    first, second = (node for node in graph.graph.nodes if node.target is aten.conv2d.default)
    (relu,) = first.users
    assert relu.target is aten.relu.default and list(relu.users) == [second]
    assert tiny("Plain", "int8", "executorch").program.operators["XNNStaticTranspose"] <= 2


def test_int8_weights_are_folded_where_litert_torch_takes_none(tiny: Tiny) -> None:
    """litert-torch 225, 355, 381, 400: quantised layers, not QUANTIZE and DEQUANTIZE around float ones."""
    file = read_tflite(tiny("Plain", "int8", "litert").data)
    layers = [operator for operator in file.operators if operator.kind in ("CONV_2D", "FULLY_CONNECTED")]
    assert len(layers) == 4
    assert {
        file.types[index] for layer in layers for index in (layer.inputs[0], layer.inputs[1], layer.outputs[0])
    } == {INT8}


def test_a_tflite_takes_int8_at_its_ends_unless_told_otherwise(tiny: Tiny) -> None:
    file = read_tflite(tiny("Plain", "int8", "litert").data)
    assert {file.types[index] for index in (*file.inputs, *file.outputs)} == {FLOAT32}


def test_a_layer_behind_an_output_is_fed_its_float_copy(tiny: Tiny) -> None:
    """ai-edge-quantizer 0.10: the embedding is an output, and the input of the head."""
    file = read_tflite(tiny("Plain", "int8", "litert").data)
    dequantised = {operator.outputs[0] for operator in file.operators if operator.kind == "DEQUANTIZE"}
    assert all(dequantised.isdisjoint(operator.inputs) for operator in file.operators)


@pytest.mark.parametrize("name", ["Embedded", "EmbeddedByElu"])
def test_litert_torch_computes_a_layer_twice_for_the_relu_behind_it(tiny: Tiny, name: str) -> None:
    """And the copy, of which nothing was learnt, would stay in float."""
    assert tiny(name, "int8", "litert").program.operators["FULLY_CONNECTED"] == 2
    assert tiny(name, "fp32", "litert").program.operators["FULLY_CONNECTED"] == 2


@pytest.mark.parametrize("name", ["Embedded", "EmbeddedByElu"])
def test_an_output_is_given_as_the_int8_copy_that_a_layer_takes(tiny: Tiny, name: str) -> None:
    """ai-edge-quantizer 0.10: the program then ends in int8, or in other values than were trained."""
    part, values = tiny_part(name, "int8"), inputs(name)
    with torch.no_grad():
        wanted = part.reference()(values)
    for mine, reference in zip(run_tiny("litert", tiny(name, "int8", "litert"), part, values), wanted, strict=True):
        assert np.abs(mine - reference.numpy()).max() <= 1.01 * np.ptp(reference.numpy()) / 255


def test_a_relu_goes_into_the_layer_whose_values_before_it_are_an_output(tiny: Tiny) -> None:
    """ExecuTorch 1.5, int8: the embedding came out without its negative half."""
    part, values = tiny_part("Embedded", "int8"), inputs("Embedded")
    with torch.no_grad():
        wanted = part.reference()(values)[1].numpy()
    embedding = run_tiny("executorch", tiny("Embedded", "int8", "executorch"), part, values)[1]
    assert wanted.min() < 0 and np.abs(embedding - wanted).max() <= 1.01 * np.ptp(wanted) / 255


def test_litert_torch_folds_a_factor_into_a_layer_whose_ranges_were_learnt(tiny: Tiny) -> None:
    """The scale of attention's scores would land in the query's weights: all int8 weights are those trained."""
    part = tiny_part("Attention", "int8")
    stored = set(read_tflite(tiny("Attention", "int8", "litert").data).constants.values())
    parameters = dict(part.trained.named_parameters())
    for layer in layer_ranges(part.trained):
        if layer.weight is not None and layer.weight_scale is not None:
            weight = parameters[layer.weight].detach() / layer.weight_scale[:, None]
            assert weight.round().clamp(-127, 127).to(torch.int8).numpy().tobytes() in stored, layer.weight


def test_xnnpack_takes_no_part_of_a_tflite(tiny: Tiny) -> None:
    """LiteRT 8889, 8928: without the delegate its interpreter overwrites buffers in use. It takes everything."""
    from ai_edge_litert.interpreter import Interpreter

    # Attention of one head over one window becomes a FULLY_CONNECTED without constant weights, which stays outside.
    for name, delegates in {"Plain": 1, "Norms": 1, "Attention": 2}.items():
        interpreter = Interpreter(model_content=tiny(name, "int8", "litert").data, num_threads=1)
        interpreter.allocate_tensors()
        operators = interpreter._get_ops_details()
        taken = [operator for operator in operators if operator["op_name"] == "DELEGATE"]
        assert len(taken) == delegates
        made = {int(index) for delegate in taken for index in delegate["outputs"]}
        assert {detail["index"] for detail in interpreter.get_output_details()} <= made


@pytest.mark.parametrize("engine", ["litert", "executorch"])
def test_dynamic_int8_with_one_scale_for_a_whole_layer(tiny: Tiny, engine: str) -> None:
    """#8830: no kernel for it; a scale for each channel."""
    part, values = tiny_part("Perceptron", "dynamic"), torch.randn(4, 24)
    program = tiny("Perceptron", "dynamic", engine)
    if engine == "litert":
        file = read_tflite(program.data)
        scales = [
            file.scales[o.inputs[1]]
            for o in file.operators
            if o.kind == "FULLY_CONNECTED" and file.types[o.inputs[1]] == INT8
        ]
        assert [len(scale) for scale in scales if scale is not None] == [32, 8]
    with torch.no_grad():
        wanted = part.module(values).numpy()
    (mine,) = run_tiny(engine, program, part, values)
    assert np.abs(mine - wanted).max() <= 0.05 * np.ptp(wanted)


def test_a_float_bias_keeps_onnx_layers_in_float(tiny: Tiny, tmp_path: Path) -> None:
    """ONNX Runtime makes an integer layer only of one whose bias is int32."""
    import onnx
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    options.log_severity_level = 4
    onnxruntime.InferenceSession(tiny("Plain", "int8", "onnx").data, options, providers=["CPUExecutionProvider"])
    kinds = [node.op_type for node in onnx.load(tmp_path / "optimised.onnx").graph.node]
    assert kinds.count("QLinearConv") == 2 and "Conv" not in kinds


def test_onnx_adds_up_in_16_bits_on_old_processors(tiny: Tiny) -> None:
    """ONNX Runtime: unsigned activations with signed weights saturate without VNNI; ours are signed on both sides."""
    import onnx
    from onnx import TensorProto

    model = onnx.load_from_string(tiny("Plain", "int8", "onnx").data)
    assert TensorProto.UINT8 not in {item.data_type for item in model.graph.initializer}


def test_onnx_weights_that_share_a_zero_point_do_not_load_on_old_processors(tiny: Tiny) -> None:
    """ONNX Runtime 1.32 makes exact kernels from signed weights by changing their zero points, and fails where two
    weights have one in common. Each weight has its own, so that the program loads and gives the model's numbers."""
    import onnx

    program, part, values = tiny("EqualWidths", "int8", "onnx"), tiny_part("EqualWidths", "int8"), inputs("EqualWidths")
    graph = onnx.load_from_string(program.data).graph
    stored = {item.name for item in graph.initializer}
    zeros = [node.input[2] for node in graph.node if node.op_type == "DequantizeLinear" and node.input[0] in stored]
    assert len(zeros) == 6 and len(set(zeros)) == 6, "three weights and three biases"
    (mine,) = run_tiny("onnx", program, part, values)
    learnt = output_range(part.trained)
    assert learnt is not None
    with torch.no_grad():
        wanted = part.reference()(values).numpy()
    assert np.abs(mine - wanted).max() <= 1.5 * learnt.scale


def test_an_onnx_program_of_an_earlier_armlet_is_refused_where_it_would_saturate(tiny: Tiny) -> None:
    import onnx

    model = onnx.load_from_string(tiny("EqualWidths", "int8", "onnx").data)
    weights = [node for node in model.graph.node if node.output[0].startswith("dequantize_per_channel")]
    assert len(weights) == 3
    for node in weights:  # as an exporter before gave them: one zero point for all
        node.input[2] = weights[0].input[2]
    part = tiny_part("EqualWidths", "int8")
    shapes = {"window": part.signature.input_shape}, part.signature.outputs
    if "vnni" in Path("/proc/cpuinfo").read_text() or platform.machine() != "x86_64":
        get_engine("onnx").load(model.SerializeToString(), *shapes).close()
    else:
        with pytest.raises(EngineError, match="VNNI: export the bundle again"):
            get_engine("onnx").load(model.SerializeToString(), *shapes)


# ------------------------------------------------------------------------------------------------- files and shapes


@pytest.mark.parametrize("engine", ENGINES)
def test_another_shape_is_read_beyond_the_input(tiny: Tiny, engine: str) -> None:
    """#3636: shapes inside a delegate are fixed. Another one is refused by name."""
    part = tiny_part("Plain", "int8")
    loaded = get_engine(engine).load(
        tiny("Plain", "int8", engine).data, {"window": part.signature.input_shape}, part.signature.outputs
    )
    with pytest.raises(EngineError, match=r"'window' must be float32 \(1, 3, 32\), and was given float32 \(1, 3, 31\)"):
        loaded({"window": np.zeros((1, 3, 31), np.float32)})
    loaded.close()


def test_the_batch_of_one_example_is_taken_for_a_constant() -> None:
    """torch.export specialises 0 and 1."""
    graph = capture(Norms(), torch.zeros(1, 3, 64), any_batch=True)
    with torch.no_grad():
        assert graph(torch.zeros(5, 3, 64)).shape == (5, 8)


def test_a_captured_graph_refuses_to_change_its_mode() -> None:
    graph = prepare(Plain(), torch.zeros(Plain.shape))
    assert graph.train() is graph and graph.eval() is graph


@pytest.mark.parametrize("engine", ENGINES)
def test_a_program_tells_of_the_machine_that_made_it(tiny: Tiny, engine: str) -> None:
    data = tiny("Norms", "int8", engine).data
    for secret in (str(Path.cwd()), str(Path(torch.__file__).parent), "site-packages"):
        assert secret.encode() not in data


def test_a_pte_plans_memory_for_its_caller_s_inputs(tiny: Tiny) -> None:
    planned = tiny("Plain", "int8", "executorch").program.planned_bytes
    assert planned is not None and planned < 4 * math.prod(Plain.shape)  # the outputs alone


@pytest.mark.parametrize(("name", "engine"), [("Perceptron", "litert"), ("Perceptron", "onnx")])
def test_fp16_weights_are_computed_with_in_fp16(tiny: Tiny, name: str, engine: str) -> None:
    part, values = tiny_part(name, "fp16"), torch.randn(4, 24)
    program = tiny(name, "fp16", engine)
    with torch.no_grad():
        wanted = part.reference()(values).numpy()
    (mine,) = run_tiny(engine, program, part, values)
    assert np.abs(mine - wanted).max() <= 1e-4
    assert {weight.type for weight in program.program.weights()} == {"float16"}


def test_executorch_makes_an_fp16_program_of_float_ends() -> None:
    with pytest.raises(ExportError, match="executorch has no fp16 program"):
        lower_part("executorch", tiny_part("Perceptron", "fp16"))


def test_a_mean_over_many_values_is_a_long_row_of_constants(tiny: Tiny) -> None:
    """Group norm over a long signal: the row would weigh more than the layers."""
    program = tiny("CrissCross", "fp32", "executorch").program
    rows = [
        value
        for value in program.values.values()
        if value.constant and value.shape[:1] == (1,) and len(value.shape) == 2
    ]
    assert max(math.prod(row.shape) for row in rows) <= 256


def test_the_last_layer_s_range_is_not_that_of_the_logits() -> None:
    graph = tiny_part("Plain", "int8").trained
    assert output_range(graph) == next(layer.output for layer in layer_ranges(graph) if layer.weight == "head.weight")
