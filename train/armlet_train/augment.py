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

from .recipes import AugmentRecipe


class Augment:
    """Raw windows in, augmented and normalised windows out."""

    def __init__(self, recipe: AugmentRecipe, normalisation: Mapping[str, Normalisation]) -> None:
        """Keep the numbers.

        Args:
            recipe: How much to change.
            normalisation: By modality, in the model's order.
        """
        self.recipe = recipe
        self.normalisation = normalisation

    def __call__(self, windows: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Augment a batch.

        Args:
            windows: Modality name to (B, channels, samples) in its unit. Three-channel modalities are vectors of one
                wearable and turn together.

        Returns:
            The same shapes, normalised, new tensors.
        """
        first = next(iter(windows.values()))
        turn = random_rotations(len(first), self.recipe.rotation_deg, first.device)
        result = {}
        for name, raw in windows.items():
            window = turn @ raw if raw.shape[1] == 3 else raw
            gain = 1 + self.recipe.scale * torch.randn(len(raw), 1, 1, device=raw.device)
            normal = normalise(window * gain, self.normalisation[name])
            loudness = self.recipe.jitter * torch.rand(len(raw), 1, 1, device=raw.device)
            noisy = normal + loudness * torch.randn_like(normal)
            result[name] = random_gaps(noisy, self.recipe.gap, self.recipe.gap_share)
        return result


def normalise(window: Tensor, numbers: Normalisation) -> Tensor:
    """:meth:`armlet_runtime.windows.Normalisation.apply` for tensors, on their device."""
    mean = torch.tensor(numbers.mean, device=window.device)[:, None]
    std = torch.tensor(numbers.std, device=window.device)[:, None]
    normal = (window - mean) / std
    return normal if numbers.knee is None else torch.asinh(normal / numbers.knee) / math.asinh(1 / numbers.knee)


def random_rotations(count: int, degrees: float, device: torch.device) -> Tensor:
    """(count, 3, 3) rotations about uniform axes by angles of a normal distribution with that standard deviation."""
    axis = F.normalize(torch.randn(count, 3, device=device), dim=1)
    angle = torch.randn(count, device=device) * degrees * math.pi / 180
    zero = torch.zeros(count, device=device)
    x, y, z = axis.unbind(1)
    cross = torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], dim=1).view(count, 3, 3)
    # Rodrigues' formula.
    sine, versine = angle.sin()[:, None, None], (1 - angle.cos())[:, None, None]
    return torch.eye(3, device=device) + sine * cross + versine * (cross @ cross)


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
    size = (torch.rand(count, device=device) * share * length).long() + 1
    place = torch.randint(0, 3, (count,), device=device)
    inside = (torch.rand(count, device=device) * (length - size)).long()
    start = torch.where(place == 0, torch.zeros_like(size), torch.where(place == 1, length - size, inside))
    size = torch.where(torch.rand(count, device=device) < probability, size, torch.zeros_like(size))
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
