"""The live loop without input and output, with a real model: grid, presence, waiting, tokens, determinism."""

from __future__ import annotations

import gc
import random
import tracemalloc
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from armlet_runtime.arrays import Float32
from armlet_runtime.bundle.manifest import Presence
from armlet_runtime.checks.export_proof import Draft
from armlet_runtime.decisions import Decision
from armlet_runtime.errors import DataError
from armlet_runtime.live.core import LiveCore, stale_ns
from armlet_runtime.modalities import Modality
from armlet_runtime.model.bundle_model import BundleModel
from armlet_runtime.signals.recording import Packet
from armlet_runtime.wearables import heart_rate, imu

START_NS = 7_000_000_000_000
PERIOD_NS = 20_000_000
SCALE = {"acc": 0.001, "gyro": 0.01}
DELAY_NS = (5_000_000,)


class CountingModel(BundleModel):
    """The real model, which also remembers what it was asked for."""

    asked: list[tuple[str, Float32]]

    def encode(self, modality: str, window: Float32) -> Float32:
        self.asked.append((modality, window))
        return super().encode(modality, window)


@pytest.fixture(scope="module")
def loaded(small_draft: Path) -> Iterator[CountingModel]:
    draft = Draft(small_draft)
    model = CountingModel(draft.manifest, draft.read, "litert")
    yield model
    model.close()


@pytest.fixture
def model(loaded: CountingModel) -> CountingModel:
    loaded.asked = []
    return loaded


def link_up(name: str, modality: str, at_ns: int, rate_hz: float = 50.0) -> list[Packet]:
    info = imu.encode_info(imu.ImuInfo(rate_hz, {modality: SCALE[modality]}))
    return [
        Packet(at_ns, name, "connected", "", b""),
        Packet(at_ns + 1, name, "info", imu.INFO_UUID, info),
    ]


def samples(
    name: str,
    modality: str,
    from_s: float,
    to_s: float,
    delay_ns: Sequence[int] = DELAY_NS,
    value: float = 0.5,
) -> list[Packet]:
    """Packets of two samples each, taken every 20 ms from START_NS on."""
    info = imu.ImuInfo(50.0, {modality: SCALE[modality]})
    out = []
    for n in range(round(from_s * 25), round(to_s * 25)):
        data = imu.encode_data(info, n, 40_000 * n, {modality: np.full((2, 3), value, np.float32)})
        taken_ns = START_NS + (2 * n + 1) * PERIOD_NS
        out.append(Packet(taken_ns + delay_ns[n % len(delay_ns)], name, "data", imu.DATA_UUID, data))
    return out


def in_order(*parts: list[Packet]) -> list[Packet]:
    return sorted((packet for part in parts for packet in part), key=lambda packet: packet.arrival_ns)


def feed(core: LiveCore, packets: list[Packet], until_ns: int | None = None) -> list[Decision]:
    decisions = [decision for packet in packets for decision in core.packet(packet)]
    return decisions + (core.advance(until_ns) if until_ns else [])


def both(to_s: float, delay_ns: Sequence[int] = DELAY_NS) -> list[Packet]:
    parts = [link_up("A", "acc", START_NS), samples("A", "acc", 0, to_s, delay_ns)]
    return in_order(*parts, link_up("G", "gyro", START_NS + 2), samples("G", "gyro", 0, to_s, delay_ns))


def at_s(seconds: float) -> int:
    return START_NS + round(seconds * 1e9)


def test_every_window_has_its_decision(model: CountingModel) -> None:
    decisions = feed(LiveCore(model), both(20.0))
    assert [decision.index for decision in decisions] == list(range(len(decisions)))
    assert len(decisions) == 38  # 1 s windows, 0.5 s hops; the last ends at 19.5 s and a bit
    ends = [decision.window_end_ns for decision in decisions]
    # The first packet's newest sample was taken at 20 ms, and no packet was quicker than 5 ms.
    assert ends[0] == at_s(0.02 + 0.005 + 1.0) and set(np.diff(ends)) == {500_000_000}
    for decision in decisions:
        assert decision.subset == ("acc", "gyro") and decision.engine == "litert"
        assert 0 <= decision.decided_ns - decision.window_end_ns <= 40_000_000
        assert decision.latency_s is None and decision.compute_s is None
        assert abs(sum(decision.scores) - 1) < 1e-9 and len(decision.embedding) == 12
        assert decision.label == model.manifest.labels[int(np.argmax(decision.scores))]
        # The first decision waits for nothing: no stream has been present yet.
        assert decision.index == 0 or decision.coverage == {"acc": 1.0, "gyro": 1.0}


def test_decisions_are_the_model_s_own(model: CountingModel) -> None:
    decision = feed(LiveCore(model), both(3.0))[-1]
    window = {name: np.full((3, 50), 0.5, np.float32) for name in ("acc", "gyro")}
    for name, seen in model.asked[-2:]:
        np.testing.assert_allclose(seen, window[name], atol=1e-6)
    logits, embedding = model.predict(dict(model.asked[-2:]))
    np.testing.assert_array_equal(np.asarray(decision.embedding, np.float32), embedding)
    np.testing.assert_allclose(decision.scores, np.exp(logits) / np.exp(logits).sum(), rtol=1e-5)


def test_lost_link_and_return(model: CountingModel) -> None:
    """First decision without the sensor within a hop of the staleness limit; whole again when coverage is."""
    lost_s, back_s = 5.0, 8.0
    packets = in_order(
        link_up("A", "acc", START_NS),
        samples("A", "acc", 0, 15),
        link_up("G", "gyro", START_NS + 2),
        samples("G", "gyro", 0, lost_s),
        [Packet(at_s(lost_s + 0.72), "G", "disconnected", "", b"")],
        link_up("G", "gyro", at_s(back_s)),
        samples("G", "gyro", back_s, 15),
    )
    decisions = feed(LiveCore(model), packets)
    assert [decision.index for decision in decisions] == list(range(len(decisions)))
    subsets = [decision.subset for decision in decisions]
    changes = [i for i in range(1, len(subsets)) if subsets[i] != subsets[i - 1]]
    assert [subsets[0], *(subsets[i] for i in changes)] == [("acc", "gyro"), ("acc",), ("acc", "gyro")]
    without, whole = (decisions[i] for i in changes)
    limit_ns = at_s(lost_s) + 500_000_000
    assert 0 < without.decided_ns - limit_ns <= 500_000_000 + 50_000_000
    assert whole.decided_ns - at_s(back_s) <= (0.7 * 1.0 + 0.5 + 0.05) * 1e9
    assert without.coverage["gyro"] <= 0.5 and without.age_s["gyro"] is not None and without.age_s["gyro"] > 0.5
    # A decision never waits longer than max_wait_s, and not at all for a sensor known to be gone.
    waits = [decision.decided_ns - decision.window_end_ns for decision in decisions]
    assert max(waits) == 200_000_000 and max(waits[changes[0] : changes[1]]) <= 40_000_000
    # Only present sensors are encoded, and each new window once.
    assert sum(name == "gyro" for name, _ in model.asked) == subsets.count(("acc", "gyro"))


def test_no_sensor_at_all_still_decides(model: CountingModel) -> None:
    core = LiveCore(model)
    decisions = feed(core, both(3.0), at_s(60.0))
    assert [decision.index for decision in decisions] == list(range(len(decisions)))
    assert decisions[-1].window_end_ns > at_s(59.4)
    empty = [decision for decision in decisions if not decision.subset]
    assert len(empty) > 100 and {decision.label for decision in empty} == {None}
    assert {decision.scores for decision in empty} == {()} == {decision.embedding for decision in empty}
    assert all(decision.decided_ns == decision.window_end_ns for decision in empty[1:])
    assert core.due_count(at_s(60.0)) == len(decisions)


def test_a_sensor_that_never_comes_is_not_waited_for(model: CountingModel) -> None:
    decisions = feed(LiveCore(model), link_up("A", "acc", START_NS) + samples("A", "acc", 0, 5))
    assert {decision.subset for decision in decisions} == {("acc",)}
    assert {decision.age_s["gyro"] for decision in decisions} == {None}
    assert max(decision.decided_ns - decision.window_end_ns for decision in decisions) <= 40_000_000


def test_coverage_has_hysteresis(model: CountingModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """0.68 of a window is enough to stay (min_coverage 0.6), not to come (return_coverage 0.7)."""
    presence = Presence(min_coverage=0.6, return_coverage=0.7)
    monkeypatch.setattr(model, "manifest", msgspec.structs.replace(model.manifest, presence=presence))

    def thinned(from_s: float) -> list[Decision]:
        # 17 of the 25 packets of a window.
        gyro = [p for i, p in enumerate(samples("G", "gyro", 0, 12)) if i / 25 < from_s or i % 25 % 3 != 2]
        parts = [link_up("A", "acc", START_NS), samples("A", "acc", 0, 12), link_up("G", "gyro", START_NS + 2), gyro]
        return feed(LiveCore(model), in_order(*parts))

    stays, comes = thinned(4.0), thinned(0.0)
    assert all(0.65 < decision.coverage["gyro"] < 0.69 for decision in stays[10:] + comes[2:])
    assert {decision.subset for decision in stays} == {("acc", "gyro")}
    assert {decision.subset for decision in comes} == {("acc",)}


def test_a_stream_without_new_samples_keeps_its_token(small_draft: Path) -> None:
    draft = Draft(small_draft)
    patient = msgspec.structs.replace(draft.manifest, presence=Presence(stale_after_s=1.5, min_coverage=0.1))
    model = CountingModel(patient, draft.read, "litert")
    model.asked = []
    stall = [p for p in samples("G", "gyro", 0, 5) if not 2_500 <= (p.arrival_ns - START_NS) / 1e6 < 3_200]
    decisions = feed(
        LiveCore(model),
        in_order(link_up("A", "acc", START_NS), samples("A", "acc", 0, 5), link_up("G", "gyro", START_NS + 2), stall),
    )
    assert {decision.subset for decision in decisions} == {("acc", "gyro")}
    assert sum(name == "acc" for name, _ in model.asked) == len(decisions)
    assert sum(name == "gyro" for name, _ in model.asked) == len(decisions) - 1


def test_subsets_change_without_reload_and_memory_does_not_grow(model: CountingModel) -> None:
    """Two sensors, of which one loses its link every four seconds."""
    packets = in_order(
        link_up("A", "acc", START_NS), samples("A", "acc", 0, 120),
        *(part for start in range(0, 120, 4) for part in (
            link_up("G", "gyro", at_s(start) + 2), samples("G", "gyro", start, start + 2),
            [Packet(at_s(start + 2) + 10_000_000, "G", "disconnected", "", b"")],
        )),
    )  # fmt: skip
    programs = [*model._encoders.values(), model._aggregator]
    core, seen, held = LiveCore(model), Counter[tuple[str, ...]](), []
    tracemalloc.start()
    try:
        for until_s in (40, 80, 120):
            while packets and packets[0].arrival_ns < at_s(until_s):
                seen.update(decision.subset for decision in core.packet(packets.pop(0)))
            model.asked.clear()  # what the test itself keeps
            gc.collect()
            held.append(tracemalloc.get_traced_memory()[0])
    finally:
        tracemalloc.stop()
    assert seen["acc", "gyro"] > 50 and seen["acc",] > 50
    # In forty seconds with ten losses; the first forty fill the rings and the windows that are kept for an example.
    assert held[2] - held[1] < 4_000
    assert programs == [*model._encoders.values(), model._aggregator]  # the very same ones


def test_staleness_of_slow_modalities() -> None:
    assert stale_ns(Presence(), Modality("acc", ("x",), "g", 50.0)) == 500_000_000
    assert stale_ns(Presence(), heart_rate.MODALITY) == 2_000_000_000


@pytest.mark.parametrize(
    ("rate_hz", "unit_scale", "says"), [(100.0, 1.0, "comes at 100 Hz; the model wants 50 Hz"), (52.0, 1.0, "")]
)
def test_a_stream_that_is_not_the_model_s_is_refused(
    model: CountingModel, rate_hz: float, unit_scale: float, says: str
) -> None:
    core = LiveCore(model)
    packets = link_up("A", "acc", START_NS, rate_hz)
    info = imu.ImuInfo(rate_hz, {"acc": SCALE["acc"]})
    for n in range(100):
        data = imu.encode_data(info, n, round(n * 2e6 / rate_hz), {"acc": np.full((2, 3), unit_scale, np.float32)})
        packets.append(Packet(at_s((2 * n + 1) / rate_hz), "A", "data", imu.DATA_UUID, data))
    decisions = feed(core, packets)
    assert core.problems.get("A/acc", "") == says
    assert bool(decisions) == (not says)


def test_the_first_wearable_of_a_modality_is_its_source(model: CountingModel) -> None:
    core = LiveCore(model)
    feed(core, in_order(both(3.0), link_up("B", "acc", START_NS + 9), samples("B", "acc", 0, 3, value=1.5)))
    assert core.problems == {"B/acc": "comes from 'A' already"}
    assert all(window.max() < 1 for _, window in model.asked)


def test_packets_must_come_in_order(model: CountingModel) -> None:
    core = LiveCore(model)
    packets = both(2.0)
    feed(core, packets)
    with pytest.raises(DataError, match="in order of arrival"):
        core.packet(packets[0])
    with pytest.raises(DataError, match="within a week"):
        core.packet(Packet(START_NS * 1000, "A", "disconnected", "", b""))


def test_a_long_silence_ends_a_replay_but_no_live_run(model: CountingModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("armlet_runtime.live.core.LONGEST_SILENCE_NS", 4_000_000_000)
    returned = Packet(at_s(8.0), "A", "connected", "", b"")
    live = LiveCore(model, lambda: at_s(8.0))
    feed(live, both(3.0))
    assert live.packet(returned)[-1].subset == ()
    replay = LiveCore(model)
    feed(replay, both(3.0))
    with pytest.raises(DataError, match="within a week"):
        replay.packet(returned)


def test_live_times_are_measured(model: CountingModel) -> None:
    now_ns = [START_NS]
    core = LiveCore(model, lambda: now_ns[0])
    for packet in both(3.0):
        now_ns[0] = packet.arrival_ns + 1_000_000
        for decision in core.packet(packet):
            assert decision.latency_s == (now_ns[0] - decision.window_end_ns) / 1e9
            assert decision.compute_s is not None and 0 < decision.compute_s < 5


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2**16), data=st.data())
def test_a_live_run_and_its_replay_agree(model: CountingModel, seed: int, data: st.DataObject) -> None:
    """However often and whenever a live run looks at the clock, its decisions are those of the packets alone."""
    rng = random.Random(seed)
    delays = [rng.randint(5_000_000, 150_000_000) for _ in range(17)]
    packets = both(8.0, delay_ns=delays)
    lost = data.draw(st.integers(40, 150))
    packets = [packet for i, packet in enumerate(packets) if not lost < i < lost + 60 or packet.wearable == "A"]
    packets.insert(lost, Packet(packets[lost].arrival_ns, "G", "disconnected", "", b""))
    end_ns = packets[-1].arrival_ns + 2_000_000_000

    live = LiveCore(model)
    decisions: list[Decision] = []
    for before, packet in zip([None, *packets], packets, strict=False):
        if before is not None:
            for _ in range(rng.randint(0, 2)):
                decisions += live.advance(rng.randint(before.arrival_ns, packet.arrival_ns))
            due_ns = live.due_ns()
            if due_ns is not None and before.arrival_ns < due_ns < packet.arrival_ns:
                decisions += live.advance(due_ns + 1)
        decisions += live.packet(packet)
    decisions += live.advance(end_ns)

    replayed = feed(LiveCore(model), packets, end_ns)
    assert [d.to_json() for d in decisions] == [d.to_json() for d in replayed]
    assert [d.index for d in replayed] == list(range(len(replayed)))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.tuples(
            st.integers(0, 300_000_000),
            st.sampled_from(["A", "G", "?"]),
            st.sampled_from(["connected", "disconnected", "info", "data", "nonsense"]),
            st.sampled_from([imu.INFO_UUID, imu.DATA_UUID, heart_rate.MEASUREMENT_UUID, ""]),
            st.binary(max_size=30) | st.just(imu.encode_info(imu.ImuInfo(50.0, {"acc": 0.001}))),
        ),
        max_size=40,
    )
)
def test_any_packets_are_survived(model: CountingModel, events: list[tuple[int, str, str, str, bytes]]) -> None:
    core, at_ns = LiveCore(model), START_NS + 200_000_000
    packets = both(1.0)
    for step_ns, name, kind, source, data in events:
        at_ns += step_ns
        packets.append(Packet(at_ns, name, kind, source, data))
    decisions = feed(core, in_order(packets), START_NS + 20_000_000_000)
    assert [decision.index for decision in decisions] == list(range(len(decisions))) and decisions
