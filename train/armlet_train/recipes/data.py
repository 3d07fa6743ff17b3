"""The data section of a recipe, and augmentation."""

from __future__ import annotations

import msgspec


class DataRecipe(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The data set, and how it is cut into windows.

    Attributes:
        name: A data set that armlet knows, or a folder in armlet's format (see ``train/DATA.md``).
        modalities: The model's modalities, in its order.
        labels: The classes of the classifier; windows with any other, or with several, are left out of
            fine-tuning and scoring. Pretraining uses all windows.
        window_s: Length of a window.
        stride_s: From window to window in scoring.
        hop_s: From window to window in the live loop.
        knee: Modality to the knee of its scale, see :class:`armlet_runtime.windows.Normalisation`.
        path: Where a person keeps a data set that cannot be fetched.
        hold_out: Labels kept out of training: no window of training people touches any of them.
        scale: Modality to the constant that its values are divided by, instead of the training people's mean and
            deviation: what a pretrained encoder expects, such as 100 for its 100 uV.
    """

    name: str
    modalities: tuple[str, ...]
    labels: tuple[str, ...]
    window_s: float
    stride_s: float
    hop_s: float
    knee: dict[str, float] = {}
    path: str | None = None
    hold_out: tuple[str, ...] = ()
    scale: dict[str, float] = {}


class AugmentRecipe(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How training windows are changed; see :mod:`armlet_train.data.augment`.

    Attributes:
        rotation_deg: Standard deviation of the angle by which a wearable sits askew.
        scale: Standard deviation of a modality's gain error.
        jitter: Largest standard deviation of added noise, in standard deviations of the signal.
        gap: Probability that a modality has a gap of up to ``gap_share`` of the window.
        gap_share: Largest share of the window that a gap takes.
        warp: Standard deviation of the logarithm of the speed at which time runs inside the window.
    """

    rotation_deg: float
    scale: float
    jitter: float
    gap: float
    gap_share: float = 0.4
    warp: float = 0.0
