"""Mu-MAE: masks, targets, what may and may not flow between streams, video, and the model in the common shape."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from armlet_runtime.errors import RecipeError
from armlet_runtime.modalities import Modality
from armlet_runtime.signals.recording import Recording
from armlet_train.engine.run_folder import load_run
from armlet_train.methods.mumae import MuMae
from armlet_train.models import mumae
from armlet_train.models.base import ArmletModel
from armlet_train.models.build import build_model
from armlet_train.recipes import AugmentRecipe, Fusion, Masking, MuMaeModel, MuMaePretrain, VideoRecipe

ACC = Modality("acc", ("x", "y", "z"), "g", 50.0)
PPG = Modality("ppg", ("green",), "1", 25.0)
LENGTHS = {"acc": 128, "ppg": 64}
CLIP = VideoRecipe(height=16, width=24, patch=8, colours=3)
CAMERA = Modality("camera", tuple(f"p{number}" for number in range(16 * 24 * 3)), "1", 12.5)


def sizes(
    fusion: Fusion = "cross-attention", video: dict[str, VideoRecipe] | None = None, spans: int = 16
) -> MuMaeModel:
    return MuMaeModel(
        spans=spans, width=16, depth=1, heads=2, fusion=fusion, queries=2, embedding_dim=12, dropout=0.0,
        video=video or {},
    )  # fmt: skip


def pretraining(masking: Masking = "synchronised", ratio: float = 0.75, tube_ratio: float = 0.9) -> MuMaePretrain:
    return MuMaePretrain(
        epochs=1, batch=4, learning_rate=1e-3, weight_decay=0.0, seed=0, augment=AugmentRecipe(0, 0, 0, 0),
        masking=masking, mask_ratio=ratio, tube_ratio=tube_ratio, decoder_width=16, decoder_depth=1, decoder_heads=2,
    )  # fmt: skip


@pytest.fixture
def model() -> ArmletModel:
    torch.manual_seed(0)
    return build_model(sizes(), (ACC, PPG), LENGTHS, 4)


def windows(count: int) -> dict[str, Tensor]:
    return {"acc": torch.randn(count, 3, 128), "ppg": torch.randn(count, 1, 64)}


def everything(count: int, streams: int = 2) -> Tensor:
    return torch.ones(count, streams, dtype=torch.bool)


@pytest.mark.parametrize("fusion", ["cross-attention", "concatenation"])
def test_model_has_the_common_shape(fusion: Fusion) -> None:
    model = build_model(sizes(fusion), (ACC, PPG), LENGTHS, 4).eval()
    batch = windows(3)
    assert model.tokens(batch).shape == (3, 2, 16 * 16)
    logits, embedding = model(batch, everything(3))
    assert logits.shape == (3, 4) and embedding.shape == (3, 12)
    # What stands in an absent stream's window does not matter.
    present = torch.tensor([[True, False]]).expand(3, 2)
    other, _ = model({**batch, "ppg": torch.full((3, 1, 64), 1e6)}, present)
    torch.testing.assert_close(other, model(batch, present)[0], rtol=0, atol=0)
    assert model.features(batch, everything(3)).shape == (3, 32)


@pytest.mark.parametrize("fusion", ["cross-attention", "concatenation"])
def test_parts_can_be_exported(fusion: Fusion) -> None:
    model = build_model(sizes(fusion), (ACC, PPG), LENGTHS, 4).eval()
    batch = windows(1)
    exported = torch.export.export(model.encoders["acc"], (batch["acc"],)).module()
    torch.testing.assert_close(exported(batch["acc"]), model.encoders["acc"](batch["acc"]))
    tokens = model.tokens(batch).flatten(1)
    exported = torch.export.export(model.aggregator, (tokens,)).module()
    torch.testing.assert_close(exported(tokens)[0], model.aggregator(tokens)[0])


def test_attention_is_scaled_dot_product_attention() -> None:
    torch.manual_seed(1)
    attention = mumae.Attention(12, 3)
    queries, keys = torch.randn(2, 5, 12), torch.randn(2, 7, 12)
    visible = torch.rand(2, 7) < 0.7

    def heads(values: Tensor) -> Tensor:
        return values.reshape(2, -1, 3, 4).transpose(1, 2)

    mixed = F.scaled_dot_product_attention(
        heads(attention.query(queries)), heads(attention.key(keys)), heads(attention.value(keys)),
        attn_mask=visible[:, None, None, :],
    )  # fmt: skip
    expected = attention.out(mixed.transpose(1, 2).reshape(2, 5, 12))
    torch.testing.assert_close(attention(queries, keys, visible), expected)


def test_fusion_asks_each_stream_for_its_own_spans_only() -> None:
    torch.manual_seed(2)
    fusion = mumae.CrossAttentionFusion(sizes(), streams=2)
    spans = torch.randn(1, 32, 16, requires_grad=True)
    found = fusion(torch.randn(1, 16), spans)
    assert found.shape == (1, 2 * 2 * 16)
    torch.autograd.backward(found[:, : 2 * 16].sum())
    assert spans.grad is not None
    assert spans.grad[:, :16].abs().sum() > 0 and not spans.grad[:, 16:].any()


@pytest.mark.parametrize(("ratio", "hidden"), [(0.75, 12), (0.9, 14)])  # 0.9: 14 hidden, 2 seen, as published
def test_synchronised_masks_hide_the_same_spans(model: ArmletModel, ratio: float, hidden: int) -> None:
    masks = MuMae(model, pretraining(ratio=ratio)).masks(50)
    assert masks["acc"].hidden.shape == (50, hidden)
    assert torch.equal(masks["acc"].hidden, masks["ppg"].hidden)
    every = torch.cat([*masks["acc"]], dim=1).sort(dim=1).values
    assert torch.equal(every, torch.arange(16).expand(50, 16))
    assert len({tuple(row) for row in masks["acc"].hidden.tolist()}) > 25  # another mask for each window


def test_independent_masks_hide_other_spans(model: ArmletModel) -> None:
    masks = MuMae(model, pretraining("independent")).masks(50)
    same = [
        torch.equal(a.sort().values, b.sort().values)
        for a, b in zip(masks["acc"].hidden, masks["ppg"].hidden, strict=True)
    ]
    assert sum(same) < 5


def test_video_has_the_published_numbers_of_tokens() -> None:
    # 16 frames of 224 x 224 in tubelets of 2 x 16 x 16: 1568 tokens, of which a tube mask of 0.9 leaves 160.
    video = VideoRecipe(height=224, width=224, patch=16, colours=1)
    camera = Modality("camera", tuple(f"p{number}" for number in range(224 * 224)), "1", 8.0)
    model = build_model(sizes(video={"camera": video}, spans=8), (camera,), {"camera": 16}, 2)
    method = MuMae(model, pretraining())
    mask = method.masks(2)["camera"]
    assert mask.hidden.shape[1] + mask.seen.shape[1] == 1568
    assert mask.seen.shape[1] == 160
    # Tubes: the same patches in each of the eight spans.
    patches = mask.hidden.reshape(2, 8, 176) - 196 * torch.arange(8)[:, None]
    assert torch.equal(patches, patches[:, :1].expand(-1, 8, -1))


def test_tubelets_are_patches_through_the_frames_of_a_span() -> None:
    encoder = mumae.VideoEncoder(sizes(spans=4), CLIP, CAMERA, 8)
    clip = torch.randn(2, 3, 16, 24, 8)
    pieces = encoder.pieces(clip.reshape(2, -1, 8))
    assert pieces.shape == (2, 4 * 6, 2 * 3 * 8 * 8)
    # Third span, second row and third column of patches.
    expected = clip[:, :, 8:16, 16:24, 4:6].permute(0, 4, 1, 2, 3).flatten(1)
    torch.testing.assert_close(pieces[:, 2 * 6 + 5], expected)
    assert encoder(clip.reshape(2, -1, 8)).shape == (2, 4 * 16)


def test_targets_are_normalised_piece_by_piece(model: ArmletModel) -> None:
    method = MuMae(model, pretraining())
    encoder = method.encoder("acc")
    window = torch.randn(5, 3, 128) * 3 + 2
    window[0] = 7.0  # constant: where the published code divides by zero
    pieces = encoder.pieces(window)
    torch.testing.assert_close(pieces[1, 2], window[1, :, 16:24].flatten())
    targets = method.targets(pieces)
    assert not targets[0].any()
    torch.testing.assert_close(targets[1:].mean(dim=2), torch.zeros(4, 16), rtol=0, atol=1e-5)
    torch.testing.assert_close(targets[1:].var(dim=2), torch.ones(4, 16), rtol=1e-4, atol=0)


def test_hidden_spans_are_not_seen(model: ArmletModel) -> None:
    method = MuMae(model, pretraining())
    masks = method.masks(2)
    batch = {name: window.requires_grad_() for name, window in windows(2).items()}
    said = method.predict(batch, everything(2), masks)
    torch.autograd.backward(said["ppg"].sum())
    for name, length in (("acc", 8), ("ppg", 4)):
        gradient = batch[name].grad
        assert gradient is not None
        spans = gradient.reshape(2, gradient.shape[1], 16, length).abs().sum(dim=(1, 3))
        assert not spans.gather(1, masks[name].hidden).any()
        # What is seen of either stream helps: the encoder is joint.
        assert spans.gather(1, masks[name].seen).all()


def test_absent_stream_takes_no_part(model: ArmletModel) -> None:
    method = MuMae(model, pretraining())
    present = everything(4)
    present[1:, 1] = False
    batch = windows(4)
    strange = {**batch, "ppg": torch.cat([batch["ppg"][:1], torch.full((3, 1, 64), 1e4)])}
    results = []
    for views in (batch, strange):
        torch.manual_seed(3)
        terms = method((views,), present)
        gradient = torch.autograd.grad(terms["loss"], method.narrow.weight)[0]
        results.append((terms, gradient))
    torch.testing.assert_close(results[0], results[1], rtol=0, atol=0)
    alone, _ = results[0]
    torch.testing.assert_close(alone["loss"], 0.5 * (alone["acc"] + alone["ppg"]))
    absent = method((batch,), torch.zeros(4, 2, dtype=torch.bool))
    assert absent["loss"].item() == 0


def test_hidden_spans_are_learned(model: ArmletModel) -> None:
    torch.manual_seed(4)
    method = MuMae(model, pretraining(ratio=0.5))
    optimiser = torch.optim.AdamW(method.parameters(), 5e-3)
    losses = []
    for _ in range(60):
        pace = 20 + 20 * torch.rand(32, 1, 1)
        batch = {name: torch.sin(pace * torch.linspace(0, 1, size)).expand(-1, channels, -1)
                 for name, channels, size in (("acc", 3, 128), ("ppg", 1, 64))}  # fmt: skip
        loss = method((batch,), everything(32))["loss"]
        optimiser.zero_grad()
        torch.autograd.backward(loss)
        optimiser.step()
        losses.append(float(loss.detach()))
    assert sum(losses[-5:]) < 0.75 * sum(losses[:5])


def test_video_beside_a_sensor_learns() -> None:
    # A made clip: a bar that moves at the sensor's pace.
    torch.manual_seed(5)
    model = build_model(sizes(video={"camera": CLIP}, spans=4), (ACC, CAMERA), {"acc": 64, "camera": 8}, 2)
    method = MuMae(model, pretraining(ratio=0.5, tube_ratio=0.5))
    optimiser = torch.optim.AdamW(method.parameters(), 5e-3)
    losses = []
    for _ in range(40):
        pace = 0.5 + torch.rand(16, 1)
        time = torch.arange(64) / 64
        acc = torch.sin(6 * pace * time)[:, None].expand(-1, 3, -1)
        column = (pace * time[::8] * 12).long() % 24
        bar = F.one_hot(column, 24).float()[:, None, None].expand(-1, 3, 16, -1, -1)  # colours, rows, frames, columns
        clip = bar.transpose(3, 4).reshape(16, -1, 8)
        terms = method(({"acc": acc, "camera": clip},), everything(16))
        torch.testing.assert_close(terms["loss"], 0.5 * terms["acc"] + terms["camera"])
        optimiser.zero_grad()
        torch.autograd.backward(terms["loss"])
        optimiser.step()
        losses.append(float(terms["camera"].detach()))
    assert sum(losses[-5:]) < 0.7 * sum(losses[:5])
    logits, _ = model({"acc": acc, "camera": clip}, everything(16))
    assert logits.shape == (16, 2)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"spans": 5}, "do not divide the 128 samples"),
        ({"heads": 3}, "must be a multiple of 2 x heads"),
        ({"video": {"camera": CLIP}}, "names camera, which is not among"),
        ({"video": {"acc": CLIP}}, "3 channels, and colours x height x width are 1152"),
    ],
)
def test_sizes_that_do_not_fit_are_one_sentence(change: dict[str, object], says: str) -> None:
    with pytest.raises(RecipeError, match=says):
        build_model(msgspec.structs.replace(sizes(), **change), (ACC, PPG), LENGTHS, 4)


def test_mask_that_hides_nothing_is_refused(model: ArmletModel) -> None:
    with pytest.raises(RecipeError, match="hides 0 of 16"):
        MuMae(model, pretraining(ratio=0.05))


@pytest.mark.full("trains a recipe of video")
def test_recipe_runs_from_windows_to_a_classifier(recordings: list[Recording], tmp_path: Path) -> None:
    assert recordings  # HAPT is in the cache
    armlet = [sys.executable, "-m", "armlet_runtime"]
    pretrained, finetuned = str(tmp_path / "pretrained"), str(tmp_path / "finetuned")
    subprocess.run([*armlet, "pretrain", "hapt-mumae-tiny", "--out", pretrained], check=True, capture_output=True)
    line = json.loads((tmp_path / "pretrained" / "metrics.jsonl").read_text().splitlines()[0])
    assert {"loss", "acc", "gyro"} <= set(line["terms"])
    command = [*armlet, "finetune", "hapt-mumae-tiny", "--from", pretrained, "--out", finetuned]
    subprocess.run(command, check=True, capture_output=True)
    trained = load_run(tmp_path / "finetuned", "finetune")
    assert isinstance(trained.model.aggregator, mumae.JointAggregator)
    # Pretraining and fine-tuning both moved the joint transformer.
    weights = [load_run(tmp_path / name).model.aggregator.state_dict() for name in ("pretrained", "finetuned")]
    assert not torch.equal(*(state["joint.blocks.0.inner.weight"] for state in weights))
