"""The trainings of a recipe: pretraining with a struct for each method, fine-tuning, few-shot."""

from __future__ import annotations

from typing import Literal

import msgspec

from .data import AugmentRecipe

Masking = Literal["synchronised", "independent"]


class TrainingRecipe(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What every training needs; see :mod:`armlet_train.engine.trainer`.

    Attributes:
        epochs: Passes over as many windows as the training people have at ``stride_s``.
        batch: Windows a step, over all processes.
        learning_rate: Peak; linear warm-up over the first twentieth, then half a cosine to zero.
        weight_decay: Of AdamW.
        seed: Of everything random.
        augment: Changes to the windows.
    """

    epochs: int
    batch: int
    learning_rate: float
    weight_decay: float
    seed: int
    augment: AugmentRecipe


class PretrainRecipe(TrainingRecipe, frozen=True, forbid_unknown_fields=True, kw_only=True, tag_field="method"):
    """Pretraining; each method has a struct of its own, see :mod:`armlet_train.engine.pretrain`.

    Attributes:
        neighbour_s: How far the second view's window may lie from the first's, within the same recording. People go on
            with what they do, so windows close in time belong together, wherever a step begins in them. Methods with
            one view do not look at it.
    """

    neighbour_s: float = 0.0


class CrosslPretrain(PretrainRecipe, frozen=True, forbid_unknown_fields=True, kw_only=True, tag="crossl"):
    """CroSSL; see :mod:`armlet_train.models.crossl`.

    Attributes:
        views: 2: each window has a second view, augmented apart, of a window near it. 1: both masks hide parts of the
            same view, as published.
        strategy: The hidden parts: whole modalities (``spatial``), or single elements of tokens (``random``).
        keep: Probability of not being hidden; the published code's default is 0.9.
        every_mask: Compare each view under every mask with the other under every other one, instead of under one drawn
            pair (``spatial`` and ``vicreg`` only): the encoders, which cost most, run no more often for that.
        objective: The loss: VICReg, or one of the rivals in :mod:`armlet_train.methods.losses`.
        similarity: VICReg's invariance coefficient.
        variance: VICReg's variance coefficient.
        covariance: VICReg's covariance coefficient.
        temperature: Of the rivals.
        negatives: Weight of COCOA's second term.
        projection_dim: Width of the space in which views are compared; 0 to compare embeddings, as published.
    """

    views: Literal[1, 2] = 2
    strategy: Literal["spatial", "random"] = "spatial"
    keep: float = 0.5
    every_mask: bool = False
    objective: Literal["vicreg", "nt-xent", "cocoa"] = "vicreg"
    similarity: float = 25.0
    variance: float = 25.0
    covariance: float = 1.0
    temperature: float = 0.1
    negatives: float = 3.9e-3
    projection_dim: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.keep < 1:
            raise ValueError("keep must lie between 0 and 1, both excluded")
        if self.every_mask and (self.strategy, self.objective) != ("spatial", "vicreg"):
            raise ValueError('every_mask goes with strategy = "spatial" and objective = "vicreg"')


class MuMaePretrain(PretrainRecipe, frozen=True, forbid_unknown_fields=True, kw_only=True, tag="mumae"):
    """Mu-MAE; see :mod:`armlet_train.models.mumae`. Defaults are those of the published code.

    Attributes:
        masking: Whether all sensors hide the same spans (``synchronised``) or each its own (``independent``).
        mask_ratio: Share of a sensor's spans that is hidden; 0.75 is the published command's default, its script for
            MMAct has 0.9.
        tube_ratio: Share of a camera's patches that is hidden; the published script has 0.9.
        decoder_width: Of the decoders; published: 384.
        decoder_depth: Layers of each decoder; published: 4.
        decoder_heads: Published: 6.
        target: Target of the decoders: each ``piece`` normalised by itself, as published, or the ``signal`` unchanged.
        sensor_weight: Of each sensor's loss.
        video_weight: Of each camera's loss.
    """

    masking: Masking = "synchronised"
    mask_ratio: float = 0.75
    tube_ratio: float = 0.9
    decoder_width: int
    decoder_depth: int
    decoder_heads: int
    target: Literal["piece", "signal"] = "piece"
    sensor_weight: float = 0.5
    video_weight: float = 1.0


class DualPretrain(PretrainRecipe, frozen=True, forbid_unknown_fields=True, kw_only=True, tag="dual"):
    """Dual masking within and across leads; see :mod:`armlet_train.methods.dual_masking`.

    Attributes:
        within: Share of the patches hidden in each lead of a window that is masked within leads.
        across: Share of the leads, or of the columns, hidden in a window that is masked across leads.
        unit: The hidden parts across leads: whole ``leads``, or ``columns``, the same patch of every lead.
        across_share: Share of the windows that are masked across leads; the others are masked within.
    """

    within: float
    across: float
    unit: Literal["leads", "columns"]
    across_share: float

    def __post_init__(self) -> None:
        if not (0 < self.within < 1 and 0 < self.across < 1 and 0 <= self.across_share <= 1):
            raise ValueError("within and across must lie between 0 and 1, both excluded, and across_share from 0 to 1")


class NoPretrain(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="method", tag="none"):
    """No pretraining: a model fresh from its seed, for the supervised baseline."""

    seed: int


class LoraRecipe(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Fine-tuning of small additions to an encoder's matrices instead of the encoder; see
    :mod:`armlet_train.models.lora`.

    Attributes:
        rank: Of each addition.
        alpha: An addition counts ``alpha / rank``.
    """

    rank: int
    alpha: float

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ValueError("rank must be at least 1")


class FinetuneRecipe(TrainingRecipe, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Fine-tuning with a classifier under modality dropout; see :mod:`armlet_train.engine.finetune`.

    Attributes:
        label_smoothing: Of the cross-entropy.
        average: Decay of the running average of the weights, which is what is kept.
        subsets: Whether each window is learned in ``every`` subset of its modalities, or only as a ``whole``; the
            latter makes a model that is no good when a modality is lost, to compare with.
        lora: If given, encoders are fine-tuned by low-rank additions to their matrices, and only so.
    """

    label_smoothing: float
    average: float
    subsets: Literal["every", "whole"] = "every"
    lora: LoraRecipe | None = None


class FewShotRecipe(TrainingRecipe, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Episodic meta-training of a prototype head and the model under it; see :mod:`armlet_train.fewshot.episodes`.

    ``batch`` is episodes a step, and an epoch has ``steps`` of them.

    Attributes:
        steps: Of an epoch.
        ways: Classes of an episode, in training and in test; published: 5.
        shots: Labelled examples of each class; published: 1.
        queries: Queries of each class, in training; published: 1.
        made: Share of the training episodes that are made, see :mod:`armlet_train.fewshot.synthetic_motion`.
        unspliced: Learned labels between which no window is spliced, because the held-out labels lie there. Any other
            two learned labels give two more classes to learn, see :func:`armlet_train.fewshot.synthetic_motion.splice`.
        distance: Of a query from a prototype.
        scale: First value of the learned factor on similarities; 7 is the published code's fixed one.
        classification: Weight of telling the learned classes apart; published: 1.
        episode: Weight of the episodes' loss; published: 0.5.
        test_episodes: Episodes of the test; 10,000 as published.
        test_crops: Windows of each example in the test, ``test_crop_s`` from one to the next around its middle; their
            embeddings (for ``cosine`` brought to unit length) are averaged.
        test_crop_s: See there.
        seeds: Trainings of each row of the table, with seeds from 0 on.
    """

    steps: int
    ways: int = 5
    shots: int = 1
    queries: int
    made: float
    unspliced: tuple[str, ...]
    distance: Literal["cosine", "euclidean"]
    scale: float = 7.0
    classification: float = 1.0
    episode: float = 0.5
    test_episodes: int = 10_000
    test_crops: int = 1
    test_crop_s: float = 0.0
    seeds: int

    def __post_init__(self) -> None:
        if not 0 <= self.made <= 1:
            raise ValueError("made must lie from 0 to 1")
        if self.test_crops < 1:
            raise ValueError("test_crops must be at least 1")


class CheckpointRecipe(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """When trainings write checkpoints; see :mod:`armlet_train.engine.checkpoints`.

    Attributes:
        every_s: Seconds from one to the next, which is what a killed training loses at most; 0 for every step.
        last: How many are kept.
    """

    every_s: float = 60.0
    last: int = 2
