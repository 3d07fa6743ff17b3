"""Resampling, gaps and cutting: what training and the board share."""

from __future__ import annotations

import bisect
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from armlet_runtime import windows
from armlet_runtime.modalities import Modality, subset_name, subsets
from armlet_runtime.windows import GAP_PERIODS, Normalisation, WindowSpec, cut, fill_gaps, resample, sample_times

ACC = Modality("acc", ("x", "y", "z"), "g", 50.0)


def sine(times: np.ndarray, hz: float) -> np.ndarray:
    return np.sin(2 * np.pi * hz * times)[:, None].astype(np.float32)


def test_resample_on_the_samples_returns_them_exactly() -> None:
    times = np.arange(200) / 50
    values = np.random.default_rng(0).normal(size=(200, 3)).astype(np.float32)
    out, covered = resample(times, values, times[10:60], 0.02)
    assert covered.all()
    np.testing.assert_array_equal(out, values[10:60])


@pytest.mark.parametrize("shift", [0.001, 0.005, 0.01, 0.0199])
def test_resample_between_samples_follows_the_signal(shift: float) -> None:
    times = np.arange(200) / 50
    grid = times[10:180] + shift
    out, covered = resample(times, sine(times, 3.0), grid, 0.02)
    assert covered.all()
    # Cubic interpolation of 3 Hz at 50 Hz: below 0.1 % of the amplitude; linear would be off by 1.8 %.
    assert np.abs(out - sine(grid, 3.0)).max() < 1e-3


def test_nothing_is_interpolated_across_a_gap() -> None:
    times = np.concatenate([np.arange(50), np.arange(60, 110)]) / 50
    values = np.ones((100, 1), np.float32)
    grid = np.arange(110) / 50
    out, covered = resample(times, values, grid, 0.02)
    assert not covered[50:60].any()
    assert covered[:50].all() and covered[60:].all()
    assert (out[50:60] == 0).all()


def test_one_lost_sample_is_a_gap_of_one() -> None:
    times = np.delete(np.arange(20), 7) / 50
    _, covered = resample(times, np.zeros((19, 1), np.float32), np.arange(20) / 50, 0.02)
    assert np.flatnonzero(~covered).tolist() == [7]


@given(st.integers(0, 40), st.floats(-5, 5), st.data())
def test_resample_never_invents_a_value_out_of_reach(count: int, start: float, data: st.DataObject) -> None:
    steps = data.draw(st.lists(st.floats(1e-3, 0.2), min_size=count, max_size=count))
    times = np.cumsum(np.asarray(steps))
    values = np.arange(count, dtype=np.float32)[:, None]
    grid = start + np.arange(30, dtype=np.float64) * 0.02
    out, covered = resample(times, values, grid, 0.02)
    assert np.isfinite(out).all()
    for at in grid[covered]:
        assert np.abs(times - at).min() <= 1.5 * 0.02 + 1e-6


def spelled_out(times: list[float], values: list[float], at: float, period_s: float) -> float | None:
    """What :func:`resample` says of one grid time; None where it is not covered."""

    def together(i: int) -> bool:
        return 0 <= i < len(times) - 1 and times[i + 1] - times[i] <= GAP_PERIODS * period_s

    left = bisect.bisect_right(times, at) - 1
    if together(left):
        share = (at - times[left]) / (times[left + 1] - times[left])
        if not (together(left - 1) and together(left + 1)):
            return values[left] * (1 - share) + values[left + 1] * share
        nodes = (-1, 0, 1, 2)
        weights = [math.prod((share - other) / (node - other) for other in nodes if other != node) for node in nodes]
        return sum(weight * value for weight, value in zip(weights, values[left - 1 : left + 3], strict=True))
    near = [i for i in (left, left + 1) if 0 <= i < len(times)]
    nearest = min(near, key=lambda i: abs(times[i] - at), default=None)
    return None if nearest is None or abs(times[nearest] - at) > period_s / 2 + 1e-9 else values[nearest]


@given(
    steps=st.lists(st.sampled_from([0.019, 0.02, 0.021, 0.0299, 0.0301, 0.041, 0.1]), max_size=30),
    start=st.floats(-0.3, 0.3),
    seed=st.integers(0, 2**16),
)
def test_resample_is_what_its_text_says(steps: list[float], start: float, seed: int) -> None:
    times = np.cumsum(steps)
    values = np.random.default_rng(seed).normal(size=(len(steps), 1)).astype(np.float32)
    grid = np.sort(np.concatenate([start + np.arange(30) * 0.02, times]))  # some on the samples
    out, covered = resample(times, values, grid, 0.02)
    for at, got, there in zip(grid, out[:, 0], covered, strict=True):
        expected = spelled_out(times.tolist(), values[:, 0].tolist(), float(at), 0.02)
        assert there == (expected is not None)
        assert got == pytest.approx(expected or 0.0, abs=1e-5)


def test_long_recordings_are_resampled_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    times = np.cumsum(rng.choice([0.02, 0.02, 0.02, 0.06], 1000))
    values, grid = rng.normal(size=(1000, 3)).astype(np.float32), np.arange(1500) / 50
    whole = resample(times, values, grid, 0.02)
    monkeypatch.setattr(windows, "_BLOCK", 64)
    for one, other in zip(whole, resample(times, values, grid, 0.02), strict=True):
        np.testing.assert_array_equal(one, other)


def test_fill_gaps_holds_the_nearest_covered_sample() -> None:
    values = np.array([[1.0], [0.0], [0.0], [0.0], [5.0], [0.0]], np.float32)
    covered = np.array([True, False, False, False, True, False])
    assert fill_gaps(values, covered)[:, 0].tolist() == [1, 1, 1, 5, 5, 5]


def test_fill_gaps_of_nothing_is_zeros() -> None:
    assert (fill_gaps(np.zeros((4, 2), np.float32), np.zeros(4, bool)) == 0).all()


def test_windows_one_length_apart_share_no_sample() -> None:
    spec = WindowSpec(2.56, 0.32)
    count = spec.samples(ACC)
    assert count == 128
    first, second = sample_times(10.0, 50.0, count), sample_times(12.56, 50.0, count)
    assert second[0] - first[-1] == pytest.approx(0.02)


def test_cut_is_a_view_of_the_samples_in_order() -> None:
    values = np.arange(20, dtype=np.float32).reshape(10, 2)
    made = cut(values, length=4, stride=3)
    assert made.shape == (3, 2, 4)
    np.testing.assert_array_equal(made[1], values[3:7].T)


def test_normalisation_gives_zero_mean_and_unit_spread() -> None:
    values = np.random.default_rng(1).normal([1, 2, 3], [4, 5, 6], (1000, 3)).astype(np.float32).T
    normal = Normalisation(tuple(map(float, values.mean(axis=1))), tuple(map(float, values.std(axis=1)))).apply(values)
    assert np.abs(normal.mean(axis=1)).max() < 1e-5
    assert np.abs(normal.std(axis=1) - 1).max() < 1e-5


def test_knee_keeps_signs_and_one_and_lifts_what_is_small() -> None:
    numbers = Normalisation((0.0,), (1.0,), knee=0.05)
    small, one, large, minus = numbers.apply(np.array([[0.01, 1.0, 100.0, -1.0]], np.float32))[0]
    assert one == pytest.approx(1) and minus == pytest.approx(-1)
    assert 0.05 < small < 0.06
    assert 2 < large < 3


def test_subsets_are_all_non_empty_ones_whole_first() -> None:
    assert subsets(["acc", "gyro"]) == [("acc", "gyro"), ("acc",), ("gyro",)]
    assert len(subsets(list("abcde"))) == 31
    assert subset_name(("acc", "gyro")) == "acc+gyro"
    assert subset_name(()) == "none"
