"""Recipes: one TOML file holds every number of a training, checked against the structs here.

A recipe is named by its path, or by the name of one that comes with armlet (``hapt``, ``hapt-demo``).
"""

from __future__ import annotations

import difflib
import re
from pathlib import Path
from types import UnionType
from typing import Any, Literal, get_args

import msgspec
import tomllib

from armlet_runtime.bundle import MAX_MAJORITY, Presence
from armlet_runtime.errors import RecipeError


class DataRecipe(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is learned from, and how it is cut.

    Attributes:
        name: A data set that armlet knows, or a folder in armlet's format (see ``train/DATA.md``).
        modalities: The model's modalities, in its order.
        labels: The labels that the classifier tells apart; windows with any other, or with several, are left out of
            fine-tuning and scoring. Pretraining uses all windows.
        window_s: Length of a window.
        stride_s: From window to window in scoring.
        hop_s: From window to window in the live loop.
        knee: Modality to the knee of its scale, see :class:`armlet_runtime.signals.windows.Normalisation`.
        path: Where a person keeps a data set that cannot be fetched.
        hold_out: Labels kept out of training: no window of training people touches one.
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


class ModelRecipe(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, tag_field="kind"):
    """What kind of model, and its sizes; each kind has a struct (:func:`armlet_train.models.build.build_model`)."""


class ConvModel(ModelRecipe, frozen=True, forbid_unknown_fields=True, kw_only=True, tag="conv"):
    """Armlet's own small model, :class:`armlet_train.models.conv.ConvEncoder`.

    Attributes:
        channels: Of each convolution.
        kernels: Samples that each spans.
        strides: Samples from step to step of each.
        token_dim: Width of a token.
        hidden_dim: Width between the tokens and the embedding.
        embedding_dim: Width of the embedding.
        dropout: Before the embedding.
        mask: What stands for an absent token; see :func:`armlet_train.methods.masks.set_mask_policy`.
    """

    channels: tuple[int, ...]
    kernels: tuple[int, ...]
    strides: tuple[int, ...]
    token_dim: int
    hidden_dim: int
    embedding_dim: int
    dropout: float
    mask: Literal["zero", "token", "presence", "attention"] = "token"

    @property
    def flagged(self) -> bool:
        """Whether the last element of a token says that it is there."""
        return self.mask in ("presence", "attention")

    def __post_init__(self) -> None:
        if not len(self.channels) == len(self.kernels) == len(self.strides) > 0:
            raise ValueError("channels, kernels and strides must have one entry for each layer")


class CrosslModel(ModelRecipe, frozen=True, forbid_unknown_fields=True, kw_only=True, tag="crossl"):
    """The model of CroSSL's paper, :class:`armlet_train.models.crossl.CrosslEncoder`; the defaults are the published
    ones.

    Attributes:
        kernels: Of the three convolutions, whose channels are a quarter, a half and the whole of ``token_dim``.
        token_dim: Width of a token, a multiple of 4.
        hidden_dim: Of the aggregator's first layer.
        embedding_dim: Width of the embedding.
        dropout: After each convolution.
    """

    kernels: tuple[int, int, int] = (24, 16, 8)
    token_dim: int = 96
    hidden_dim: int = 64
    embedding_dim: int = 32
    dropout: float = 0.1

    def __post_init__(self) -> None:
        if self.token_dim < 4 or self.token_dim % 4:
            raise ValueError("token_dim must be a multiple of 4")


class CBraModSizes(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One CBraMod encoder, see :mod:`armlet_train.models.cbramod`. The defaults are those of the published weights.

    Attributes:
        patch: Samples of a patch; the published weights take 1 s at 200 Hz.
        stride: Samples from step to step of the first convolution, whose kernel is twice as long less one.
        maps: Of the convolutions; ``maps * patch / stride`` is the width of the encoder.
        groups: Of the group norms.
        layers: Of criss-cross attention.
        heads: Half of them attend across channels, half across patches.
        feedforward: Hidden width of each layer's two linear maps.
        positions: Channels and patches that the convolution for positions reaches over; odd.
        dropout: In training.
        weights: File of weights to start from, such as the published ``pretrained_weights.pth``; they take microvolts
            at 200 Hz, and ``[data] scale`` must divide by 100. Dual-masked pretraining leaves such an encoder as it is.
    """

    patch: int = 200
    stride: int = 25
    maps: int = 25
    groups: int = 5
    layers: int = 12
    heads: int = 8
    feedforward: int = 800
    positions: tuple[int, int] = (19, 7)
    dropout: float = 0.1
    weights: str | None = None

    @property
    def width(self) -> int:
        """Of what stands for a patch."""
        return self.maps * self.patch // self.stride

    def __post_init__(self) -> None:
        if min(self.patch, self.stride, self.maps, self.groups, self.layers, self.heads, self.feedforward) < 1:
            raise ValueError("patch, stride, maps, groups, layers, heads and feedforward must be at least 1")
        if self.patch % self.stride:
            raise ValueError(f"patch ({self.patch}) must be divisible by stride ({self.stride})")
        if self.maps % self.groups:
            raise ValueError(f"maps ({self.maps}) must be divisible by groups ({self.groups})")
        if self.heads % 2 or self.width % self.heads:
            raise ValueError(f"heads must be even and divide the width, maps * patch / stride = {self.width}")
        if not all(reach % 2 for reach in self.positions):
            raise ValueError("positions must be two odd numbers")


class CBraModModel(ModelRecipe, frozen=True, forbid_unknown_fields=True, kw_only=True, tag="cbramod"):
    """A CBraMod encoder a modality, fused by concatenation; see :mod:`armlet_train.models.cbramod`.

    Attributes:
        encoders: Modality to the sizes of its encoder.
        pool: How a window's patches become one token: their ``mean``, or all of them side by side (``flat``), each
            followed by a linear map.
        token_dim: Width of a token.
        embedding_dim: Width between the concatenated tokens and the head.
        dropout: Before the head.
    """

    encoders: dict[str, CBraModSizes]
    pool: Literal["mean", "flat"]
    token_dim: int
    embedding_dim: int
    dropout: float


Fusion = Literal["cross-attention", "concatenation"]
Masking = Literal["synchronised", "independent"]


class VideoRecipe(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A stream of pictures: its channels are colours x height x width, in this order.

    Attributes:
        height: Pixels.
        width: Pixels.
        patch: Side of the square patches, in pixels; the published code has 16, in pictures of 224 x 224.
        colours: Values of a pixel.
    """

    height: int
    width: int
    patch: int = 16
    colours: int = 3


class MuMaeModel(ModelRecipe, frozen=True, forbid_unknown_fields=True, kw_only=True, tag="mumae"):
    """Spans of every stream through one joint transformer, fused by cross-attention; see
    :mod:`armlet_train.models.mumae`.

    Attributes:
        spans: Spans that a window of every stream is cut into; 16 as published (of 8 samples there).
        width: Of a span's embedding, and of the joint transformer; published: 768.
        depth: Layers of the joint transformer; published: 12.
        heads: Of every attention; published: 12.
        fusion: How streams come together: by ``cross-attention``, or by plain ``concatenation`` of their means.
        queries: Queries to each stream in the cross-attention; published: 1.
        embedding_dim: Width of the embedding; published: 768.
        dropout: In the joint transformer, and before the embedding.
        video: Streams that are video.
    """

    spans: int = 16
    width: int
    depth: int
    heads: int
    fusion: Fusion
    queries: int = 1
    embedding_dim: int
    dropout: float
    video: dict[str, VideoRecipe] = {}


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
        strategy: What is hidden: whole modalities (``spatial``), or single elements of tokens (``random``).
        keep: Probability of not being hidden; the published code's default is 0.9.
        every_mask: Compare each view under every mask with the other under every other one, instead of under one drawn
            pair (``spatial`` and ``vicreg`` only): the encoders, which cost most, run no more often for that.
        objective: What is minimised: VICReg, or one of the rivals in :mod:`armlet_train.methods.losses`.
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
        target: What decoders say: each ``piece`` normalised by itself, as published, or the ``signal`` as it is.
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
        unit: What is hidden across leads: whole ``leads``, or ``columns``, the same patch of every lead.
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


class QatRecipe(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Quantisation-aware training and what int8 may cost; read by ``armlet export``.

    Attributes:
        epochs: Passes over the training windows.
        learning_rate: At the start; it falls to zero along half a cosine.
        distillation: Share of the loss that is the divergence from the float model; the rest is cross-entropy.
        frozen_epochs: Last epochs in which the activations' ranges stay as they are.
        max_f1_loss: Largest loss of macro-F1 in any subset on validation people (0.01 is one point).
        min_agreement: Smallest share of validation windows with the float model's arg max, in any subset.
    """

    epochs: int
    learning_rate: float
    distillation: float
    frozen_epochs: int
    max_f1_loss: float
    min_agreement: float


class ExportRecipe(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What programs are made in, and how their scores become decisions; read by ``armlet export``.

    Attributes:
        precision: Modality, or ``aggregator``, to what its programs are kept in; ``int8`` for those that are not named.
        max_auto_loss: What ``--precision auto`` may lose in macro-F1 in any subset on validation people.
        max_unknown: Share of right decisions on validation people that the threshold for ``unknown`` may cost; 0 for
            no threshold.
        smoothing: Of the labels of successive windows: ``majority`` of the last ``majority_windows``, or ``hidden
            markov`` with transitions counted on training people.
        majority_windows: See there.
        incremental: Whether encoders carry what they computed from window to window; for ``kind = "conv"``, with a hop
            that is a whole multiple of all strides together.
    """

    precision: dict[str, Literal["int8", "dynamic", "fp16", "fp32", "auto"]] = {}
    max_auto_loss: float = 0.005
    max_unknown: float = 0.02
    smoothing: Literal["none", "majority", "hidden markov"] = "none"
    majority_windows: int = 5
    incremental: bool = False

    def __post_init__(self) -> None:
        if not 1 <= self.majority_windows <= MAX_MAJORITY:
            raise ValueError(f"majority_windows must lie from 1 to {MAX_MAJORITY}")
        if not 0 <= self.max_unknown < 1:
            raise ValueError("max_unknown must be at least 0 and below 1")


class CheckpointRecipe(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """When trainings write checkpoints; see :mod:`armlet_train.engine.checkpoints`.

    Attributes:
        every_s: Seconds from one to the next, which is what a killed training loses at most; 0 for every step.
        last: How many are kept.
    """

    every_s: float = 60.0
    last: int = 2


# The kinds of models and the methods of pretraining that a recipe can name.
Model = ConvModel | CrosslModel | MuMaeModel | CBraModModel
Pretrain = CrosslPretrain | MuMaePretrain | DualPretrain | NoPretrain


class Recipe(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One training, from windows to int8."""

    data: DataRecipe
    model: Model
    pretrain: Pretrain
    finetune: FinetuneRecipe
    qat: QatRecipe
    presence: Presence = Presence()
    checkpoints: CheckpointRecipe = CheckpointRecipe()
    fewshot: FewShotRecipe | None = None
    export: ExportRecipe = ExportRecipe()

    def __post_init__(self) -> None:
        encoders = self.model.encoders if isinstance(self.model, CBraModModel) else {}
        for name, sizes in encoders.items():
            if sizes.weights is not None and self.data.scale.get(name) != 100.0:
                raise ValueError(f"[model.encoders.{name}] weights take microvolts / 100: set [data.scale] {name}=100")


def find_recipe(name: str) -> Path:
    """The file of a recipe given by path or by name.

    Raises:
        RecipeError: There is none.
    """
    if Path(name).is_file():
        return Path(name)
    # In the repository recipes lie beside the package, in the wheel inside it.
    folders = [Path(__file__).parent / "recipes", Path(__file__).parent.parent / "recipes"]
    for folder in folders:
        if (folder / f"{name}.toml").is_file():
            return folder / f"{name}.toml"
    known = sorted(path.stem for folder in folders for path in folder.glob("*.toml"))
    raise RecipeError(f"there is no recipe '{name}': give the path of a .toml file, or one of {', '.join(known)}")


def load_recipe(path: Path) -> Recipe:
    """Read and check a recipe.

    Raises:
        RecipeError: It is not TOML, has an unknown key, lacks one, or has a value of a wrong type.
    """
    try:
        table = tomllib.loads(path.read_text())
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise RecipeError(f"cannot read the recipe {path}: {error}") from None
    try:
        return msgspec.convert(table, Recipe)
    except msgspec.ValidationError as error:
        raise RecipeError(f"{path}: {_explain(str(error), table)}") from None


def _explain(message: str, table: dict[str, Any]) -> str:
    """msgspec's message in the words of a recipe, with the nearest known name where one is unknown."""
    found = re.fullmatch(r"(.*?)(?: - at `\$\.?(.*?)`)?", message, re.DOTALL)
    assert found is not None  # the pattern fits any text
    said, place = found[1], found[2] or ""
    where = f"[{place or 'top level'}]"
    if unknown := re.fullmatch("Object contains unknown field `(.+)`", said):
        fields = msgspec.structs.fields(_struct_at(place, table))
        return f"{where} has no key '{unknown[1]}'; {_nearest(unknown[1], [field.name for field in fields])}"
    if missing := re.fullmatch("Object missing required field `(.+)`", said):
        return f"{where} lacks the key '{missing[1]}'"
    parent, _, key = place.rpartition(".")
    if wrong := re.fullmatch("Invalid (?:enum )?value '(.+)'", said):
        known = _known_values(parent, key, table)
        return f"[{parent}] cannot have {key} = '{wrong[1]}'; {_nearest(wrong[1], known)}"
    return message.replace("`$.", "`")


def _nearest(name: str, known: list[str]) -> str:
    near = difflib.get_close_matches(name, known, 1)
    return f"did you mean '{near[0]}'?" if near else f"known are {', '.join(known)}"


def _options(kind: Any) -> list[Any]:
    """The members of a union, or the one type."""
    return list(get_args(kind)) if isinstance(kind, UnionType) else [kind]


def _options_at(place: str, table: dict[str, Any]) -> list[Any]:
    """The structs that may stand at a place of a recipe, such as ``pretrain.augment``."""
    kinds: list[Any] = [Recipe]
    for part in filter(None, place.split(".")):
        fields = msgspec.structs.fields(_chosen(kinds, table))
        kinds = _options(next(field.type for field in fields if field.name == part))
        table = table[part]
    return kinds


def _struct_at(place: str, table: dict[str, Any]) -> Any:
    """The struct at a place of a recipe; of a union's, the one that the recipe names."""
    kinds = _options_at(place, table)
    for part in filter(None, place.split(".")):
        table = table[part]
    return _chosen(kinds, table)


def _chosen(kinds: list[Any], table: dict[str, Any]) -> Any:
    config = kinds[0].__struct_config__
    return next((kind for kind in kinds if kind.__struct_config__.tag == table.get(config.tag_field)), kinds[0])


def _known_values(place: str, key: str, table: dict[str, Any]) -> list[str]:
    """What a key that names one of several things can be."""
    kinds = _options_at(place, table)
    if kinds[0].__struct_config__.tag_field == key:
        return [kind.__struct_config__.tag for kind in kinds]
    fields = msgspec.structs.fields(_struct_at(place, table))
    return list(get_args(next(field.type for field in fields if field.name == key)))
