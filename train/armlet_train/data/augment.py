"""Changes to training windows that a wearer, a wearable or a radio link could have made.

All work on batches, on the device that the batch is on, and draw from PyTorch's global generator, which the training
loops seed anew at every epoch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from armlet_runtime.windows import Normalisation

from ..distributed import rows
from ..recipes import AugmentRecipe

WARP_KNOTS = 4
"""Where the speed of time is drawn in a window, as many as Um et al. have."""


class Augment:
    """Raw windows in, augmented and normalised windows out."""

    def __init__(
        self, recipe: AugmentRecipe, normalisation: Mapping[str, Normalisation], device: torch.device | None = None
    ) -> None:
        """Put the numbers where the windows will be.

        Args:
            recipe: How much to change.
            normalisation: By modality, in the model's order.
            device: Of the windows; the CPU if not given.
        """
        self.recipe = recipe
        self._normalise = {name: Normalise(numbers, device) for name, numbers in normalisation.items()}

    def __call__(self, windows: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Augment a batch.

        Args:
            windows: Modality name to (B, channels, samples) in its unit. Three-channel modalities are vectors of one
                wearable and turn together; time runs alike for all modalities.

        Returns:
            The same shapes, normalised, new tensors.
        """
        recipe = self.recipe
        first = next(iter(windows.values()))
        count, device = first.shape[0], first.device
        turn = random_rotations(count, recipe.rotation_deg, device)
        speeds = random_speeds(count, recipe.warp, device) if recipe.warp else None
        result = {}
        for name, raw in windows.items():
            window = turn @ raw if raw.shape[1] == 3 else raw
            if speeds is not None:
                window = warp_time(window, speeds)
            normal = self._normalise[name](window * (1 + recipe.scale * normal_rows(count, (1, 1), device)))
            loudness = recipe.jitter * uniform_rows(count, (1, 1), device)
            noisy = normal + loudness * normal_rows(count, tuple(normal.shape[1:]), device)
            result[name] = random_gaps(noisy, recipe.gap, recipe.gap_share)
        return result


class Normalise:
    """:meth:`armlet_runtime.windows.Normalisation.apply` for tensors, on their device."""

    def __init__(self, numbers: Normalisation, device: torch.device | None = None) -> None:
        """Put the numbers on the device once: to do so in a step would make the host wait for it."""
        self._mean = torch.tensor(numbers.mean, device=device)[:, None]
        self._std = torch.tensor(numbers.std, device=device)[:, None]
        self._knee = numbers.knee

    def __call__(self, window: Tensor) -> Tensor:
        """(..., channels, samples) in the modality's unit to the same, normalised."""
        normal = (window - self._mean) / self._std
        return normal if self._knee is None else torch.asinh(normal / self._knee) / math.asinh(1 / self._knee)


def normal_rows(count: int, shape: tuple[int, ...], device: torch.device) -> Tensor:
    """(count, ...) standard normal, the same in many processes as in one."""
    return rows(lambda every: torch.randn(every, *shape, device=device), count)


def uniform_rows(count: int, shape: tuple[int, ...], device: torch.device) -> Tensor:
    """(count, ...) uniform in [0, 1), the same in many processes as in one."""
    return rows(lambda every: torch.rand(every, *shape, device=device), count)


def random_rotations(count: int, degrees: float, device: torch.device) -> Tensor:
    """(count, 3, 3) rotations about uniform axes by angles of a normal distribution with that standard deviation."""
    axis = F.normalize(normal_rows(count, (3,), device), dim=1)
    angle = normal_rows(count, (), device) * degrees * math.pi / 180
    zero = torch.zeros(count, device=device)
    x, y, z = axis.unbind(1)
    cross = torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], dim=1).view(count, 3, 3)
    # Rodrigues' formula.
    sine, versine = angle.sin()[:, None, None], (1 - angle.cos())[:, None, None]
    return torch.eye(3, device=device) + sine * cross + versine * (cross @ cross)


def random_speeds(count: int, deviation: float, device: torch.device) -> Tensor:
    """(count, :data:`WARP_KNOTS`) how fast time runs at evenly spaced knots of a window: log-normal around 1.

    Args:
        count: Windows.
        deviation: Standard deviation of the logarithm.
        device: Where they are wanted.
    """
    return torch.exp(deviation * normal_rows(count, (WARP_KNOTS,), device))


def warp_time(windows: Tensor, speeds: Tensor) -> Tensor:
    """Let time run unevenly inside each window; its first and last sample stay where they are.

    Time warping as of Um et al. (ICMI 2017, arXiv 1706.00527), with speeds that are linear between the knots and never
    negative in place of a spline; linear interpolation between samples.

    Args:
        windows: (B, channels, samples).
        speeds: (B, knots) positive, from :func:`random_speeds`.
    """
    length = windows.shape[2]
    at_samples = F.interpolate(speeds[:, None], size=length, mode="linear", align_corners=True)[:, 0]
    # The trapezoids between samples; then all of a window is passed through, whatever the mean speed.
    steps = (at_samples[:, 1:] + at_samples[:, :-1]) / 2
    time = F.pad(steps.cumsum(dim=1), (1, 0))
    time = time / time[:, -1:] * (length - 1)
    before = time.long().clamp_(max=length - 2)
    share = (time - before)[:, None]
    index = before[:, None].expand(-1, windows.shape[1], -1)
    return torch.lerp(windows.gather(2, index), windows.gather(2, index + 1), share)


def random_gaps(windows: Tensor, probability: float, share: float) -> Tensor:
    """Put a gap at the start, the end or inside of some windows, filled as the board fills it.

    The filling is that of :func:`armlet_runtime.windows.fill_gaps`: the nearest sample is held.

    Args:
        windows: (B, channels, samples).
        probability: Of a window having a gap.
        share: Largest share of the window that the gap takes.
    """
    count, _, length = windows.shape
    device = windows.device
    size = (uniform_rows(count, (), device) * share * length).long() + 1
    place = rows(lambda every: torch.randint(0, 3, (every,), device=device), count)
    inside = (uniform_rows(count, (), device) * (length - size)).long()
    start = torch.where(place == 0, torch.zeros_like(size), torch.where(place == 1, length - size, inside))
    size = torch.where(uniform_rows(count, (), device) < probability, size, torch.zeros_like(size))
    return hold_gap(windows, start, size)


def hold_gap(windows: Tensor, start: Tensor, size: Tensor) -> Tensor:
    """Fill ``size`` samples from ``start`` on, one gap a window, with the nearest sample outside (earlier on a tie).

    Args:
        windows: (B, channels, samples).
        start: (B,) first sample of the gap.
        size: (B,) samples in the gap; 0 for none, less than the window's length.
    """
    length = windows.shape[2]
    at = torch.arange(length, device=windows.device).expand(len(windows), length)
    before, after = (start - 1)[:, None], (start + size)[:, None]
    hidden = (at > before) & (at < after)
    use_before = (before >= 0) & ((at - before <= after - at) | (after >= length))
    source = torch.where(hidden, torch.where(use_before, before, after), at)
    return windows.gather(2, source[:, None, :].expand(-1, windows.shape[1], -1))
