"""Quantisation-aware training: what is rounded, and resuming."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from torch import nn

from armlet_export.pipeline import Trained
from armlet_export.quantise.capture import capture
from armlet_export.quantise.fake_quant import convert, fake_quantisers, layer_ranges, prepare, set_input_range
from armlet_export.quantise.graph_builder import aten
from armlet_export.quantise.qat import prepared_part, train
from armlet_runtime.bundle.manifest import AGGREGATOR
from armlet_runtime.errors import ExportError
from armlet_train.engine.finetune import all_logits
from armlet_train.models.base import ArmletModel


def test_rewrites_change_nothing(material: Trained) -> None:
    for name, encoder in material.model.encoders.items():
        windows = torch.from_numpy(material.validation.windows[name][:7])
        graph = capture(encoder, windows, any_batch=True)
        targets = {node.target for node in graph.graph.nodes}
        assert not targets & {aten.unsqueeze.default, aten.avg_pool2d.default}
        assert aten.mean.dim in targets
        with torch.no_grad():
            torch.testing.assert_close(graph(windows[:3]), encoder(windows[:3]), rtol=1e-5, atol=1e-6)


def test_a_pool_over_a_part_of_the_plane_is_left_alone() -> None:
    graph = capture(nn.AvgPool2d((1, 4)), torch.zeros(1, 3, 1, 16))
    assert aten.avg_pool2d.default in {node.target for node in graph.graph.nodes}


def test_capture_has_parameters_of_its_own(material: Trained) -> None:
    encoder = material.model.encoders["acc"]
    before = [parameter.clone() for parameter in encoder.parameters()]
    graph = capture(encoder, torch.zeros(1, 3, 64))
    with torch.no_grad():
        for parameter in graph.parameters():
            parameter.add_(1)
    assert all(torch.equal(old, new) for old, new in zip(before, encoder.parameters(), strict=True))


def test_training_quantised_keeps_the_models_decisions(material: Trained, student: ArmletModel) -> None:
    wanted = all_logits(material.model, material.validation.windows).argmax(2)
    got = all_logits(student, material.validation.windows).argmax(2)
    assert np.mean(wanted == got) > 0.97
    assert torch.equal(student.mask_tokens, material.model.mask_tokens)


def test_weights_scales_are_those_of_the_final_weights(student: ArmletModel) -> None:
    for name in student.encoders:
        encoder = prepared_part(student, name)
        weights = dict(encoder.named_parameters())
        layers = [layer for layer in layer_ranges(encoder) if layer.weight is not None]
        assert [layer.operator for layer in layers] == ["conv2d", "conv2d", "linear"]
        for layer in layers:
            assert layer.weight is not None
            largest = weights[layer.weight].detach().abs().flatten(1).amax(1)
            torch.testing.assert_close(layer.weight_scale, largest / 127, rtol=1e-5, atol=1e-9)


def test_the_integers_that_were_trained_are_those_of_the_programs(student: ArmletModel) -> None:
    """Rounding of weights in training and in the converted graph is the same to the last bit."""
    for name in (*student.encoders, AGGREGATOR):
        graph = prepared_part(student, name)
        converted = {key: value for key, value in convert(graph).named_buffers() if key.startswith("_frozen_param")}
        weights = dict(graph.named_parameters())
        layers = [layer for layer in layer_ranges(graph) if layer.weight is not None]
        assert len(converted) == len(layers)
        quantisers = [part for part in fake_quantisers(graph) if part.is_per_channel]
        for stored, layer, quantiser in zip(converted.values(), layers, quantisers, strict=True):
            assert layer.weight is not None and layer.weight_scale is not None
            with torch.no_grad():
                trained = quantiser(weights[layer.weight])
            scale = layer.weight_scale.reshape(-1, *[1] * (trained.ndim - 1))
            torch.testing.assert_close(trained, stored * scale, rtol=1e-6, atol=0)


def test_input_ranges_stay_as_chosen(material: Trained) -> None:
    graph = prepare(material.model.encoders["acc"], torch.zeros(1, 3, 64))
    set_input_range(graph, 2.0)
    graph(torch.full((4, 3, 64), 50.0))
    found = layer_ranges(graph)[0].input
    assert found is not None
    assert (found.low, found.high) == pytest.approx((-2.0, 2.0), rel=0.01)


def test_a_layer_without_an_integer_form_is_refused() -> None:
    class Unusual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(4, 6))

        def forward(self, values: torch.Tensor) -> torch.Tensor:
            return torch.nn.functional.linear(values, self.weight * 2)

    with pytest.raises(ExportError, match="quantise"):
        prepare(Unusual(), torch.zeros(2, 6))


class StoppedError(Exception):
    pass


def test_an_interrupted_training_ends_with_the_same_weights(
    material: Trained, student: ArmletModel, fresh_student: Callable[[], ArmletModel], tmp_path: Path
) -> None:
    steps = 0

    def interrupt() -> None:
        nonlocal steps
        steps += 1
        if steps == material.batch_count * 3 // 2:  # in the second epoch
            raise StoppedError

    def run(advance: Callable[[], None]) -> ArmletModel:
        model = fresh_student()
        train(
            material.model, model, material.qat, material.batches, material.batch_count, material.validation,
            all_logits(material.model, material.validation.windows), tmp_path,
            lambda report: epochs.append(report.epoch), advance,
        )  # fmt: skip
        return model

    epochs: list[int] = []
    with pytest.raises(StoppedError):
        run(interrupt)
    assert epochs == [0]
    epochs.clear()
    resumed = run(lambda: None)
    assert epochs == [0, 1]
    wanted = student.state_dict()
    assert all(torch.equal(wanted[name], value) for name, value in resumed.state_dict().items())


def test_a_loss_that_is_not_finite_names_its_epoch(
    material: Trained, fresh_student: Callable[[], ArmletModel], tmp_path: Path
) -> None:
    recipe = msgspec.structs.replace(material.qat, learning_rate=1e30)
    with pytest.raises(ExportError, match=r"not finite in epoch 1; lower \[qat\] learning_rate"):
        train(
            material.model, fresh_student(), recipe, material.batches, material.batch_count, material.validation,
            all_logits(material.model, material.validation.windows), tmp_path, lambda report: None, lambda: None,
        )  # fmt: skip
    assert list(tmp_path.iterdir()) == []
