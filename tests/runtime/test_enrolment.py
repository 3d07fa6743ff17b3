"""Classes learned on the board: prototypes, the file beside the bundle, and the command."""

from __future__ import annotations

import dataclasses
import json
import math
import os
from functools import partial
from pathlib import Path

import msgspec
import numpy as np
import pytest

from armlet_runtime.bundle.container import Bundle
from armlet_runtime.bundle.manifest import UNKNOWN, Confidence, HiddenMarkov, Majority
from armlet_runtime.checks.export_proof import Draft
from armlet_runtime.cli import main
from armlet_runtime.errors import BundleError, EnrolmentError
from armlet_runtime.live.core import RECENT_WINDOWS, LiveCore
from armlet_runtime.live.enrol_recording import Stretch, other_occurrences, recorded_windows
from armlet_runtime.live.open_bundle import Opened, layer_path
from armlet_runtime.live.page_controls import RunControls
from armlet_runtime.live.run import Run
from armlet_runtime.model.bundle_model import BundleModel
from armlet_runtime.model.calibration import SURE, Decider, softmax
from armlet_runtime.model.enrolled_classes import (
    Example,
    Layer,
    LayerWatch,
    Prototype,
    change_layer,
    check_name,
    left_behind,
    read_layer,
)
from armlet_runtime.model.policy import Policy
from armlet_runtime.model.prototypes import MAX_WINDOWS, REACH, Bank, make_example, taken_for
from armlet_runtime.signals.recorder import Recorder
from armlet_runtime.signals.recording import Packet, Recording
from armlet_runtime.signals.recording_writer import write_recording
from tests.support.small_bundle import SmallBundle

from .test_live import START_NS, CountingModel, both, feed, in_order, link_up, loaded, model, samples  # noqa: F401

SUBSETS = ("acc+gyro", "acc", "gyro")


@pytest.fixture(scope="module")
def bank(small_draft: Path) -> Bank:
    draft = Draft(small_draft)
    return Bank(draft.manifest, draft.read)


def tokens(seed: int, count: int = 1) -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(seed)
    return [{name: (4 * rng.standard_normal(16)).astype(np.float32) for name in ("acc", "gyro")} for _ in range(count)]


def embedding(model: BundleModel, window: dict[str, np.ndarray], subset: str) -> tuple[list[float], list[float]]:  # noqa: F811
    logits, vector = model.aggregate({name: window[name] for name in subset.split("+")})
    return logits.tolist(), vector.tolist()


def layer_of(**examples: Example) -> Layer:
    layer = Layer(1, "d" * 64)
    for name, example in examples.items():
        layer = layer.enrol(name, example)
    return layer


def test_one_example_is_known_again_in_every_subset(model: CountingModel, bank: Bank) -> None:  # noqa: F811
    (window,) = tokens(1)
    example = make_example(model, bank, [window], "here")
    assert set(example.prototypes) == set(SUBSETS) and example.windows == 1 and example.engine == "litert"
    decider = Decider(model.manifest, Policy(layer=layer_of(wave=example)))
    assert decider.labels == (*model.manifest.labels, "wave")
    for subset in SUBSETS:
        verdict = decider.decide(subset, *embedding(model, window, subset))
        assert verdict.label == verdict.raw_label == "wave"
        assert verdict.scores[-1] > 0.999 and sum(verdict.scores) == pytest.approx(1)


def test_no_window_of_the_bank_becomes_the_new_class(model: CountingModel, bank: Bank) -> None:  # noqa: F811
    layer = layer_of(**{f"new {seed}": make_example(model, bank, tokens(seed, 5), "here") for seed in range(3)})
    plain, enrolled = Decider(model.manifest), Decider(model.manifest, Policy(layer=layer))
    rng, taken = np.random.default_rng(5), 0
    for row in range(bank.windows):
        window = {name: bank.tokens[name][row] for name in bank.tokens}
        for subset in SUBSETS:
            one = embedding(model, window, subset)
            assert enrolled.decide(subset, *one).label == plain.decide(subset, *one).label
    for seed in range(3):  # but what is near an example does
        for window in tokens(seed, 5):
            near = {name: token + 0.02 * rng.standard_normal(16).astype(np.float32) for name, token in window.items()}
            taken += enrolled.decide("acc+gyro", *embedding(model, near, "acc+gyro")).label.startswith("new")
    assert taken >= 12


def test_the_radius_ends_before_the_nearest_known_window(model: CountingModel, bank: Bank) -> None:  # noqa: F811
    example = make_example(model, bank, tokens(2, 3), "here")
    for subset in SUBSETS:
        known = [
            embedding(model, {name: bank.tokens[name][row] for name in bank.tokens}, subset)[1]
            for row in range(bank.windows)
        ]
        for one in example.prototypes[subset]:
            nearest = min(math.dist(one.embedding, vector) for vector in known)
            assert one.radius == pytest.approx(REACH * nearest, rel=1e-5)


def test_what_the_model_is_sure_of_says_nothing_new(model: CountingModel, bank: Bank) -> None:  # noqa: F811
    windows = tokens(3, 8)
    logits = [max(embedding(model, window, "acc")[0]) for window in windows]
    # With a small temperature the model is sure of all of them, and the one it is least sure of is kept.
    sharp = Confidence(dict.fromkeys(SUBSETS, 1e-3))
    sure = BundleModel.__new__(BundleModel)
    sure.__dict__.update(model.__dict__, manifest=msgspec.structs.replace(model.manifest, confidence=sharp))
    assert {len(found) for found in make_example(sure, bank, windows, "here").prototypes.values()} == {1}
    assert len(make_example(model, bank, windows, "here").prototypes["acc"]) == 8 and len(set(logits)) == 8
    # And a person is told that an example shows nothing new.
    label = model.manifest.labels[int(np.argmax(embedding(model, windows[0], "acc+gyro")[0]))]
    assert taken_for(sure, windows[:1]) == label and taken_for(model, windows[:1]) is None
    assert taken_for(sure, [{"acc": windows[0]["acc"]}]) in model.manifest.labels and taken_for(sure, []) is None


def test_what_the_model_is_sure_of_stays_what_it_is(model: CountingModel, bank: Bank) -> None:  # noqa: F811
    (window,) = tokens(1)
    layer = layer_of(wave=make_example(model, bank, [window], "here"))
    logits, vector = embedding(model, window, "acc")
    best = int(np.argmax(logits))
    for temperature in (10.0, 1.0, 0.1, 0.01):
        confidence = Confidence(dict.fromkeys(SUBSETS, temperature))
        manifest = msgspec.structs.replace(model.manifest, confidence=confidence)
        sure = softmax(logits, temperature)[best]
        verdict = Decider(manifest, Policy(layer=layer)).decide("acc", logits, vector)
        # The window is the example itself: what the model is sure of is not taken even so.
        assert verdict.label == (manifest.labels[best] if sure > SURE else "wave"), (temperature, sure)
        assert (verdict.scores[-1] == 0.0) is (sure > SURE)
    assert softmax(logits, 10.0)[best] <= SURE < softmax(logits, 0.01)[best]  # both were seen


def test_an_example_has_no_subset_that_it_did_not_see(model: CountingModel, bank: Bank) -> None:  # noqa: F811
    half = [{"acc": window["acc"]} for window in tokens(4, 3)]
    example = make_example(model, bank, half, "here")
    assert set(example.prototypes) == {"acc"}
    verdict = Decider(model.manifest, Policy(layer=layer_of(wave=example))).decide(
        "gyro", *embedding(model, tokens(4)[0], "gyro")
    )
    assert verdict.scores[-1] == 0.0 and verdict.label != "wave"
    empty = Decider(
        model.manifest, Policy(layer=layer_of(wave=Example("here", "litert", 1, {"gyro": ()}), jump=example))
    )
    assert empty.decide("gyro", *embedding(model, tokens(4)[0], "gyro")).scores[-2:] == (0.0, 0.0)
    assert empty.decide("acc", *embedding(model, tokens(4)[0], "acc")).label == "jump"
    assert make_example(model, bank, tokens(5, 100), "here").windows == MAX_WINDOWS
    with pytest.raises(EnrolmentError, match="no window with a sensor"):
        make_example(model, bank, [], "here")


def test_unknown_and_smoothing_know_the_new_class(model: CountingModel, bank: Bank) -> None:  # noqa: F811
    (window,), (other,) = tokens(1), tokens(77)
    layer = layer_of(wave=make_example(model, bank, [window], "here"))
    unsure = Decider(model.manifest, Policy(unknown_below=1.0, layer=layer))
    assert unsure.decide("acc", *embedding(model, window, "acc")).label == "wave"
    assert unsure.decide("acc", *embedding(model, other, "acc")).label == UNKNOWN
    rows = tuple(tuple(0.97 if one == two else 0.01 for one in range(4)) for two in range(4))
    for smoothing in (Majority(3), HiddenMarkov(rows, (0.25,) * 4, 0.5)):
        decider = Decider(msgspec.structs.replace(model.manifest, smoothing=smoothing), Policy(layer=layer))
        for _ in range(6):
            assert decider.decide("acc", *embedding(model, other, "acc")).label != "wave"
        for _ in range(6):
            last = decider.decide("acc", *embedding(model, window, "acc"))
        assert last.label == "wave"
        for _ in range(12):
            last = decider.decide("acc", *embedding(model, other, "acc"))
        assert last.label == last.raw_label != "wave"


def test_the_live_loop_learns_while_it_runs(model: CountingModel, bank: Bank) -> None:  # noqa: F811
    core = LiveCore(model)
    assert core.recent(5.0) == []
    before = feed(core, both(4.0))
    assert {decision.label for decision in before} <= set(model.manifest.labels)
    windows = core.recent(2.0)
    assert len(windows) == 3  # 1 s windows, 0.5 s apart, within the last 2 s
    core.set_layer(layer_of(still=make_example(model, bank, windows, "live")))
    after = feed(core, [packet for packet in both(8.0) if packet.arrival_ns > START_NS + 4_000_000_000])
    # The signal is the same all the time, so all of it is the new class now.
    assert {decision.label for decision in after[2:]} == {"still"} and core.labels[-1] == "still"
    assert all(len(decision.scores) == 5 and decision.enrolled == ("still",) for decision in after)
    assert all(len(decision.scores) == 4 and decision.enrolled == () for decision in before)
    feed(core, [], START_NS + 60_000_000_000)
    assert len(core._recent) == RECENT_WINDOWS and core.recent(1e6) == []  # nothing but windows without a sensor


def test_a_layer_is_listed_undone_and_removed() -> None:
    def example(value: float) -> Example:
        return Example("here", "litert", 1, {"acc": (Prototype((value,), 0.5),)})

    one = Layer(1, "d" * 64).enrol("wave", example(1.0))
    two = one.enrol("jump", example(2.0)).enrol("wave", example(3.0))
    assert [len(found) for found in two.classes().values()] == [2, 1] and two.revision == 3
    gone = two.remove("wave")
    assert list(gone.classes()) == ["jump"] and list(gone.undo().classes()) == ["wave", "jump"]
    assert two.undo().classes() == {"wave": [example(1.0)], "jump": [example(2.0)]}
    again = gone.enrol("wave", example(4.0))
    assert again.classes()["wave"] == [example(4.0)] and again.undo().revision == 6
    with pytest.raises(EnrolmentError, match="no class 'walk' was enrolled for this bundle; there are: jump"):
        gone.remove("walk")
    with pytest.raises(EnrolmentError, match="nothing to undo"):
        Layer(1, "d" * 64).undo()


def test_the_file_is_bound_to_its_bundle(model: CountingModel, bank: Bank, tmp_path: Path) -> None:  # noqa: F811
    manifest, digest = model.manifest, "ab" * 32
    path = tmp_path / "m.armlet"
    path.touch()
    assert layer_path(str(path), digest) == tmp_path / "m.enrolled-abababababababab.json"
    assert layer_path(f"file:{tmp_path}", digest) == tmp_path / "enrolled-abababababababab.json"
    path = layer_path(f"file:{tmp_path}", digest)
    assert read_layer(path, digest, manifest) == Layer(1, digest)
    layer = Layer(1, digest).enrol("wave", make_example(model, bank, tokens(1), "here"))
    assert change_layer(path, digest, manifest, lambda before: layer) == layer
    assert read_layer(path, digest, manifest) == layer
    # A slot that was switched to another bundle says what it left behind; other files are none of it.
    (tmp_path / "n.enrolled-abababababababab.json").touch()
    assert left_behind(path) == []
    assert left_behind(layer_path(f"file:{tmp_path}", "cd" * 32)) == [path.name]
    good = json.loads(path.read_bytes())

    def refused(says: str, **changed: object) -> None:
        path.write_text(json.dumps({**good, **changed}))
        with pytest.raises(EnrolmentError, match=says):
            read_layer(path, digest, manifest)

    refused("of schema 2, and this armlet knows 1: update armlet", schema=2)
    refused("were enrolled for another bundle", bundle="cd" * 32)
    refused("does not hold enrolled classes", changes=[{"action": "nonsense", "name": "x", "at": ""}])
    refused("does not hold enrolled classes", more=1)
    misfits: tuple[dict[str, list[dict[str, object]]], ...] = (
        {"acc": [{"embedding": [0.0], "radius": 1.0}]},
        {"ecg": []},
        {"acc": [{"embedding": [0.0] * 12, "radius": 0.0}]},
    )
    for wrong in misfits:
        change = {**good["changes"][0], "example": {**good["changes"][0]["example"], "prototypes": wrong}}
        refused("class 'wave' in .* does not fit the bundle's model", changes=[change])
    refused("'walking' is a label of the bundle already", changes=[{**good["changes"][0], "name": "walking"}])
    path.write_bytes(b"\xff")
    with pytest.raises(EnrolmentError, match="remove the file and enrol them again"):
        read_layer(path, digest, manifest)
    for name in ("", " ", "a\nb", "x" * 65):
        with pytest.raises(EnrolmentError, match="cannot name a class"):
            check_name(name, manifest)
    with pytest.raises(EnrolmentError, match="cannot keep enrolled classes"):
        change_layer(tmp_path / "no" / "f", digest, manifest, lambda before: layer)


def test_a_run_notices_what_another_process_enrols(model: CountingModel, bank: Bank, tmp_path: Path) -> None:  # noqa: F811
    path, digest, watch = tmp_path / "layer.json", "ab" * 32, LayerWatch()

    def look() -> Layer | None:
        return watch.look(path, digest, model.manifest)

    assert look() is None and look() is None
    example = make_example(model, bank, tokens(1), "here")
    for change in (partial(Layer.enrol, name="wave", example=example), Layer.undo):
        one = change_layer(path, digest, model.manifest, change)
        assert look() == one and look() is None
    path.write_text("nonsense")
    with pytest.raises(EnrolmentError, match="does not hold enrolled classes"):
        look()
    assert look() is None  # said once
    path.unlink()
    assert look() == Layer(1, digest)


def test_a_bundle_without_a_bank_says_so(small_draft: Path) -> None:
    draft = Draft(small_draft)
    with pytest.raises(EnrolmentError, match="export again"):
        Bank(msgspec.structs.replace(draft.manifest, bank=None), draft.read)
    with pytest.raises(BundleError, match="must be float16"):
        Bank(draft.manifest, lambda member: draft.read("mask_tokens.npy"))


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Packets of 10 s, in which both sensors go from 0.5 to 3 units at 5 s."""
    parts = [link_up("A", "acc", START_NS), link_up("G", "gyro", START_NS + 2)]
    for name, modality in (("A", "acc"), ("G", "gyro")):
        whole = samples(name, modality, 0, 10, value=3.0)
        parts.append(samples(name, modality, 0, 5) + whole[125:])
    path = tmp_path_factory.mktemp("played") / "played.mcap"
    write_recording(path, Recording("played", "nobody", packets=in_order(*parts)))
    return path


def test_the_command_from_a_recording(
    small_bundle: SmallBundle, played: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = tmp_path / "small.armlet"
    bundle.write_bytes(small_bundle.path.read_bytes())
    key = ["--key", str(small_bundle.public_key_path)]

    def armlet(*words: str | Path) -> tuple[int, str, str]:
        code = main([str(word) for word in words] + key)
        out, err = capsys.readouterr()
        return code, out, err

    def decided() -> list[str]:
        assert armlet("replay", played, bundle, "--decisions", tmp_path / "d.jsonl")[0] == 0
        return [json.loads(line)["label"] for line in (tmp_path / "d.jsonl").read_text().splitlines()]

    before = decided()
    code, out, _ = armlet("enrol", "jump", bundle, "--recording", played, "--at", "6.5", "--from", "2s")
    assert code == 0 and "jump: played.mcap at 6.5 s (" in out and "revision 1" in out
    assert "elsewhere in the recording it is found once: at 5." in out and "take the example back with --undo" in out
    after = decided()
    assert after[:8] == before[:8] and after[-5:] == ["jump"] * 5 and after == decided()
    assert "jump" in armlet("enrol", "--list", bundle)[1]
    code, out, _ = armlet("enrol", "--remove", "jump", bundle, "--json", tmp_path / "left.json")
    assert code == 0 and "no classes are enrolled" in out and decided() == before
    assert json.loads((tmp_path / "left.json").read_text())["classes"] == {}
    assert armlet("enrol", bundle, "--undo")[0] == 0 and decided() == after
    files = sorted(path.name for path in tmp_path.iterdir() if "enrolled" in path.name)
    assert len(files) == 1  # nothing half-written is left beside it
    for words, says in [
        (("enrol", "walking", bundle, "--recording", played, "--at", "1"), "a label of the bundle already"),
        (("enrol", "x", bundle, "--recording", played), "--recording FILE and --at S go together"),
        (("enrol", bundle), "give the NAME of a class"),
        (("enrol", "x", bundle, "--list"), "give the NAME of a class"),
        (("enrol", "x", bundle, "--recording", played, "--at", "20"), "has no whole window"),
        (("enrol", "--remove", "x", bundle), "no class 'x' was enrolled for this bundle; there are: jump"),
    ]:
        code, _, err = armlet(*words)
        assert code == 2 and says in err, (words, err)
    (tmp_path / files[0]).chmod(0)
    if os.geteuid() != 0:
        assert "cannot read the enrolled classes" in armlet("enrol", "--list", bundle)[2]


def test_windows_of_a_recording_lie_where_they_were_asked_for(model: CountingModel, played: Path) -> None:  # noqa: F811
    from armlet_runtime.signals.recording_reader import read_recording

    packets: list[Packet] = read_recording(played).packets
    first = recorded_windows(model, packets, 1.0, None)
    assert 1 <= len(first) <= 2  # one window, or two, as the grid falls
    low = first[0]
    high = recorded_windows(model, packets, 6.0, 2.0)[0]
    assert len(recorded_windows(model, packets, 6.0, 2.0)) in (3, 4)
    assert all(np.abs(low[name] - high[name]).max() > 0.1 for name in low)
    assert recorded_windows(model, packets, 30.0, None) == []


def test_where_else_in_its_recording_an_example_is_found(model: CountingModel, bank: Bank, played: Path) -> None:  # noqa: F811
    from armlet_runtime.signals.recording_reader import read_recording

    packets: list[Packet] = read_recording(played).packets

    def elsewhere(at_s: float, length_s: float) -> list[Stretch]:
        example = make_example(model, bank, recorded_windows(model, packets, at_s, length_s), "here")
        return other_occurrences(model, "new", example, packets, at_s, length_s)

    # The signal is low until 5 s and high from then on; windows of 1 s, and two of them reach over the step.
    for at_s, length_s, begin_s, end_s in ((6.5, 1.0, 4.9, 6.5), (6.5, 1.0, 8.0, 10.1), (1.5, 1.0, 3.0, 5.1)):
        found = [one for one in elsewhere(at_s, length_s) if begin_s <= one.begin_s <= end_s]
        assert len(found) == 1 and found[0].begin_s + found[0].length_s <= end_s + 0.1, (found, at_s)
        assert found[0].label in model.manifest.labels and found[0].length_s >= 1.0
    assert elsewhere(0.0, 10.0) == []  # nothing is left


async def test_the_page_learns_and_says_when_nothing_is_new(
    model: CountingModel,  # noqa: F811
    small_bundle: SmallBundle,
    tmp_path: Path,
) -> None:
    path = tmp_path / "small.armlet"
    path.write_bytes(small_bundle.path.read_bytes())
    core = LiveCore(model)
    feed(core, both(4.0))
    unsure = small_bundle.open()
    confidence = Confidence(dict.fromkeys(SUBSETS, 1e-4))
    sure = dataclasses.replace(unsure, manifest=msgspec.structs.replace(unsure.manifest, confidence=confidence))

    def controls(bundle: Bundle) -> RunControls:
        return RunControls(Run(Opened(model, bundle, Policy()), core), str(path), None, Recorder())

    assert await controls(unsure).enrol("wave", 2.0) == "Learned 'wave' from 3 windows."
    assert core.labels[-1] == "wave"
    said = await controls(sure).enrol("jump", 0.0)
    assert said.startswith("Learned 'jump' from 1 window. But the model is sure that all of this is '")
    with pytest.raises(EnrolmentError, match="cannot name a class"):
        await controls(unsure).enrol("", 0.0)
    assert core.labels[-2:] == ("wave", "jump")
