"""Made movements: any number of few-shot tasks, made from recordings of people whose posture does not change.

A model that has only learned to tell a handful of activities apart forgets all that does not serve this, and so has
little to say of movements that it was not taught. So most of meta-training is made, in two ways.

*Spliced* classes: a person's window of one activity goes over into one of another, which makes the order matter.

*Made episodes*: an episode has a few made
postures (random ways for the body, and the wearable on it, to be turned), and a class is the way from one to another:
a turn of a certain length, with a lean out and back of its own on the way. Recorded windows of one person each are
turned along it, every person a little differently: other angles, another pace, another moment. (New classes from turned
examples: Santoro et al., ICML 2016, turned characters by 90 degrees.)

A turned window is what a wearable would have measured: the accelerometer's vectors, gravity included, turn with the
body, and the gyroscope's have the turn's own rate added. (On the recordings of HAPT's training people the derivative of
gravity is explained by the gyroscope's rate with a slope of 1.00, in these signs.) Linear accelerations are two pushes,
each with its braking.

No recording of an unseen class is used, and nothing is known of it here: postures are random, and activities between
which the unseen classes lie are not spliced. All numbers in this file were chosen by us.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from ..data import random_rotations

POSTURES = 3
"""Postures of an episode; the ways from one to another are its classes, six of them."""

POSTURE_DEG = 110.0
"""Largest angle of a posture from the upright."""

PERSON_DEG = 8.0
"""Standard deviation of a person's posture from another's."""

LEAN_DEG = 60.0
"""Largest angle of the lean on the way."""

LEAN_PERSON_DEG = 12.0
"""Standard deviation of the lean's direction from person to person."""

PUSHES = 2
"""Pushes on the way."""

PUSH = 0.15
"""Standard deviation of the largest push's acceleration in each axis, in the accelerometer's unit (g)."""

PACE = 0.2
"""Standard deviation of the logarithm of a person's pace."""


SPLICE_AT = 0.06
"""Standard deviation of the moment of a splice from the middle, in windows."""

SPLICE_SPAN = (0.1, 0.5)
"""Shortest and longest time that a splice takes, in windows."""


def splice(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Windows that begin as the first and end as the second; draws from PyTorch's generator.

    Args:
        first: Modality name to (n, channels, samples) of one activity.
        second: Windows of the same person in another posture.

    Returns:
        The same shapes.
    """
    example = next(iter(first.values()))
    count, device = example.shape[0], example.device
    middle = 0.5 + SPLICE_AT * torch.randn(count, device=device)
    low, high = SPLICE_SPAN
    span = low + (high - low) * torch.rand(count, device=device)
    result = {}
    for name, begin in first.items():
        samples = begin.shape[2]
        share, _ = smooth_step((torch.arange(samples, device=device) + 0.5) / samples, middle, span)
        result[name] = torch.lerp(begin, second[name], share[:, None])
    return result


def smooth_step(time: Tensor, middle: Tensor, span: Tensor) -> tuple[Tensor, Tensor]:
    """A step from 0 to 1 with the least jerk (Flash and Hogan, 1985), and its rate in 1/s.

    Args:
        time: (samples,) in s.
        middle: (n,) when it is half done, in s.
        span: (n,) how long it takes, in s.

    Returns:
        Two of (n, samples).
    """
    share = ((time - middle[:, None]) / span[:, None] + 0.5).clamp(0, 1)
    return share**3 * (share * (6 * share - 15) + 10), 30 * share**2 * (1 - share) ** 2 / span[:, None]


def rotations(vectors: Tensor) -> Tensor:
    """(..., 3, 3) matrices of rotation vectors (..., 3), in rad."""
    x, y, z = vectors.unbind(-1)
    zero = torch.zeros_like(x)
    cross = torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], dim=-1).unflatten(-1, (3, 3))  # type: ignore[no-untyped-call]
    angle = vectors.norm(dim=-1)[..., None, None].clamp_min(1e-8)
    eye = torch.eye(3, device=vectors.device)
    # Rodrigues' formula; sinc keeps it whole at 0.
    matrices: Tensor = eye + torch.sinc(angle / math.pi) * cross + (1 - angle.cos()) / angle**2 * (cross @ cross)
    return matrices


def rotation_vectors(matrices: Tensor) -> Tensor:
    """(..., 3) of rotation matrices (..., 3, 3); near half a turn the axis is rough."""
    cosine = ((matrices.diagonal(dim1=-2, dim2=-1).sum(dim=-1) - 1) / 2).clamp(-1 + 1e-6, 1 - 1e-6)
    angle = cosine.acos()[..., None]
    skew = matrices - matrices.transpose(-1, -2)
    axis = torch.stack([skew[..., 2, 1], skew[..., 0, 2], skew[..., 1, 0]], dim=-1) / 2
    return axis / torch.sinc(angle / math.pi)


def turn(acc: Tensor, gyro: Tensor, vector: Tensor, step: Tensor, rate: Tensor) -> tuple[Tensor, Tensor]:
    """The signals that the wearable would have measured, had the body turned by ``vector`` as well.

    Args:
        acc: (n, 3, samples) in any unit, gravity included.
        gyro: (n, 3, samples) in rad/s.
        vector: (n, 3) rotation vector of the whole turn, in rad.
        step: (n, samples) share of the turn done.
        rate: (n, samples) its derivative, in 1/s.
    """
    # The world, seen from a body that turns by the vector, turns the other way.
    seen = rotations(-vector[:, None] * step[:, :, None])
    turned_acc = (seen @ acc.transpose(1, 2)[..., None]).squeeze(-1).transpose(1, 2)
    turned_gyro = (seen @ gyro.transpose(1, 2)[..., None]).squeeze(-1).transpose(1, 2)
    return turned_acc, turned_gyro + vector[:, :, None] * rate[:, None]


def made_episodes(acc: Tensor, gyro: Tensor, episodes: int, ways: int, rate_hz: float) -> tuple[Tensor, Tensor]:
    """Turn windows into made episodes; draws from PyTorch's generator.

    Args:
        acc: (episodes * ways * each, 3, samples), of people whose posture does not change, gravity included; the
            examples of a class lie side by side.
        gyro: The same, in rad/s.
        episodes: How many.
        ways: Classes of an episode, at most six.
        rate_hz: Samples a second.

    Returns:
        The same shapes.
    """
    count, _, samples = acc.shape
    classes = episodes * ways
    each = count // classes
    device = acc.device
    time = (torch.arange(samples, device=device) + 0.5) / rate_hz - samples / rate_hz / 2

    def normal(size: int, deviation: float) -> Tensor:
        return deviation * torch.randn(size, device=device)

    def uniform(size: int, low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(size, device=device)

    def for_each(values: Tensor) -> Tensor:
        return values.repeat_interleave(each, dim=0)

    # The postures, and which two of them each class goes between.
    axes = F.normalize(torch.randn(episodes, POSTURES, 3, device=device), dim=2)
    postures = axes * torch.rand(episodes, POSTURES, 1, device=device) * math.radians(POSTURE_DEG)
    pairs = torch.cartesian_prod(*2 * [torch.arange(POSTURES, device=device)])
    pairs = pairs[pairs[:, 0] != pairs[:, 1]]
    chosen = pairs[torch.rand(episodes, len(pairs), device=device).argsort(dim=1)[:, :ways]]
    ends = postures.gather(1, chosen.flatten(1)[:, :, None].expand(-1, -1, 3)).reshape(classes, 2, 3)
    # Leans of an episode resemble each other, so that they alone do not tell the classes apart.
    common, own = torch.randn(episodes, 1, 3, device=device), torch.randn(episodes, ways, 3, device=device)
    lean = (
        F.normalize(common + 0.7 * own, dim=2).reshape(classes, 3)
        * uniform(classes, 0, math.radians(LEAN_DEG))[:, None]
    )
    lean_at, lean_gap = normal(classes, 0.6), uniform(classes, 0.6, 1.6)
    lean_span, span = uniform(classes, 0.5, 1.5), uniform(classes, 1.0, 3.0)
    push = PUSH * torch.randn(classes, PUSHES, 3, device=device) * torch.rand(classes, PUSHES, 1, device=device)
    push_at, push_span = uniform(classes * PUSHES, -1.25, 1.25), uniform(classes * PUSHES, 0.4, 1.2)

    # Everybody does it in their own way.
    begin, end = (random_rotations(count, PERSON_DEG, device) @ rotations(-for_each(ends[:, side])) for side in (0, 1))
    lean = (random_rotations(count, LEAN_PERSON_DEG, device) @ for_each(lean)[:, :, None]).squeeze(2)
    lean = lean * (1 + normal(count, 0.25))[:, None]
    pace, moment = normal(count, PACE).exp(), normal(count, 0.2)
    lean_at, lean_gap, lean_span, span = (for_each(values) * pace for values in (lean_at, lean_gap, lean_span, span))

    # Upright is where the first person of an episode has it: gravity of all others is brought there.
    gravity = F.normalize(acc.mean(dim=2), dim=1)
    upright = gravity.reshape(episodes, -1, 3)[:, :1].expand(-1, ways * each, -1).reshape(count, 3)
    axis = torch.linalg.cross(gravity, upright, dim=1)
    angle = torch.atan2(axis.norm(dim=1), (gravity * upright).sum(dim=1))
    start = begin @ rotations(F.normalize(axis, dim=1) * angle[:, None])
    acc, gyro = start @ acc, start @ gyro

    out = smooth_step(time, lean_at - lean_gap / 2 + moment + normal(count, 0.1), lean_span)
    back = smooth_step(
        time, lean_at + lean_gap / 2 + moment + normal(count, 0.1), lean_span * normal(count, 0.15).exp()
    )
    over = smooth_step(time, moment + normal(count, 0.1), span)
    acc, gyro = turn(acc, gyro, lean, *out)
    acc, gyro = turn(acc, gyro, -lean, *back)
    acc, gyro = turn(acc, gyro, -rotation_vectors(end @ begin.transpose(1, 2)), *over)

    push = for_each(push) * (1 + 0.3 * torch.randn(count, PUSHES, 1, device=device))
    push_at, push_span = (for_each(values.reshape(-1, PUSHES)) * pace[:, None] for values in (push_at, push_span))
    share = (time - push_at[:, :, None] - moment[:, None, None]) / push_span[:, :, None]
    # The second derivative of a Gaussian: what speeds up is braked again.
    pulse = (1 - 8 * share**2) * torch.exp(-4 * share**2)
    return acc + push.transpose(1, 2) @ pulse, gyro
