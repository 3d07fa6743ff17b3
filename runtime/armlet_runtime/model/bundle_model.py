"""A bundle's model on this machine: encoders, mask tokens and aggregator of one engine."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from .. import engines
from ..arrays import Float32
from ..bundle import Bundle, EnginePrograms, Manifest, ProgramRef, StepProgram
from ..engines import Engine, Program
from ..errors import BundleError, DataError, EngineError, NotANumberError
from ..windows import all_finite

# The TFLite runtime runs the programs that were made for LiteRT.
_PROGRAMS_OF = {"tflite": "litert"}


def programs_of(manifest: Manifest, engine: str) -> tuple[str, EnginePrograms]:
    """The programs that an engine runs, and the engine under whose name the manifest lists them.

    Raises:
        EngineError: The bundle has no programs for that engine.
    """
    base = engine.partition(":")[0]  # a provider may follow a colon, as in onnx:cuda
    for name in (base, _PROGRAMS_OF.get(base, base)):
        if name in manifest.engines:
            return name, manifest.engines[name]
    raise EngineError(f"the bundle has no programs for the engine '{engine}'; it has {', '.join(manifest.engines)}")


def choose_engine(manifest: Manifest) -> str:
    """The first of the manifest's engines that can be used on this machine.

    Raises:
        EngineError: No engine can be used; the message gives the reason for each.
    """
    reasons = engines.available()
    for name in manifest.engines:
        if reasons.get(name, "unknown to this armlet") is None:
            return name
    causes = "; ".join(f"{name}: {reasons.get(name, 'unknown to this armlet')}" for name in manifest.engines)
    raise EngineError(f"none of the bundle's engines can be used on this machine ({causes})")


def load_array(data: bytes, member: str, shape: tuple[int | None, ...], kind: type = np.float32) -> Float32:
    """Read an ``.npy`` member of float32, or of another kind, as float32.

    Args:
        data: The member's bytes.
        member: Its name, for messages.
        shape: Promised shape; None for a length that is not fixed.
        kind: Promised type of its numbers.

    Raises:
        BundleError: It is no such array.
    """
    stream = io.BytesIO(data)
    try:
        version = np.lib.format.read_magic(stream)
        if version != (1, 0):
            raise ValueError(f"format {version[0]}.{version[1]}")
        dimensions, fortran, dtype = np.lib.format.read_array_header_1_0(stream)
    except (ValueError, EOFError) as error:
        raise BundleError(f"the member '{member}' is not an .npy array: {error}") from error
    fits = dtype == kind and len(dimensions) == len(shape)
    if not fits or any(want not in (None, got) for want, got in zip(shape, dimensions, strict=True)):
        raise BundleError(f"the member '{member}' must be {np.dtype(kind)} {shape}, and is {dtype} {dimensions}")
    # Before anything is allocated: a header of a few bytes can promise terabytes.
    promised, remaining = math.prod(dimensions) * dtype.itemsize, len(data) - stream.tell()
    if promised != remaining:
        raise BundleError(f"the member '{member}' promises {promised} bytes of numbers and holds {remaining}")
    numbers = np.frombuffer(data, dtype, offset=stream.tell()).reshape(dimensions, order="F" if fortran else "C")
    return np.array(numbers, np.float32, order="C")


@dataclass(frozen=True)
class Carried:
    """The state that an incremental encoder keeps for the next window.

    Attributes:
        samples: The bytes of the samples, in physical units, that it rests on.
        state: The input of the step program.
    """

    samples: bytes
    state: Float32


def ends_of(step: StepProgram, window: Float32) -> Float32:
    """(channels, head + tail) the first and the last samples of a window (channels, samples), joined."""
    return np.concatenate((window[:, : step.head], window[:, window.shape[1] - step.tail :]), axis=1)


class BundleModel:
    """Encoders, mask tokens and aggregator of a bundle, loaded into one engine. Not safe for several threads at once.

    Attributes:
        manifest: The bundle's manifest.
        engine: The engine that was chosen; its ``name``, ``version`` and ``detail`` say how decisions came about.
        mask_tokens: Modality name to the token (D,) for its absence.
        steps: Modality name to the step program of its encoder, of those that are incremental.
        stepped: Windows that :meth:`encode_next` has taken a step for, instead of encoding the whole of them.
    """

    def __init__(self, manifest: Manifest, read: Callable[[str], bytes], engine: str | None = None) -> None:
        """Load all programs of one engine.

        Args:
            manifest: Manifest of a bundle or draft.
            read: Gives a member's bytes.
            engine: Engine to run on; None for the manifest's first that is usable here, see ``self.engine``.

        Raises:
            EngineError: The engine cannot be used here, is not in the bundle, or a program does not load.
            BundleError: A member cannot be read or is not what the manifest promises.
        """
        self.manifest = manifest
        self.engine: Engine = engines.get_engine(engine if engine is not None else choose_engine(manifest))
        _, programs = programs_of(manifest, self.engine.name)
        self._shapes = {m.name: (len(m.channels), manifest.window.samples(m)) for m in manifest.modalities}
        names = tuple(self._shapes)
        masks = load_array(read(manifest.mask_tokens), manifest.mask_tokens, (len(names), manifest.token_dim))
        self.mask_tokens: dict[str, Float32] = dict(zip(names, masks, strict=True))
        self._prototypes: Float32 | None = None
        if manifest.prototypes is not None:
            shape = (len(manifest.labels), manifest.embedding_dim)
            self._prototypes = load_array(read(manifest.prototypes), manifest.prototypes, shape)
        self._encoders = {name: self._load(programs.encoders[name], read) for name in names}
        self.steps: dict[str, StepProgram] = programs.steps
        self.stepped = 0
        self._steps = {name: self._load(step.program, read) for name, step in self.steps.items()}
        self._aggregator = self._load(programs.aggregator, read)
        # The aggregator's input, made once, and the places of the tokens in it.
        self._row = np.empty((1, len(names) * manifest.token_dim), np.float32)
        self._places: dict[str, Float32] = dict(zip(names, np.split(self._row[0], len(names)), strict=True))

    @classmethod
    def from_bundle(cls, bundle: Bundle, engine: str | None = None) -> BundleModel:
        """The model of a verified bundle; arguments and errors as for the constructor."""
        return cls(bundle.manifest, bundle.read, engine)

    def _load(self, ref: ProgramRef, read: Callable[[str], bytes]) -> Program:
        try:
            return self.engine.load(read(ref.member), ref.inputs, ref.outputs)
        except EngineError as error:
            raise EngineError(f"'{ref.member}' on {self.engine.name}: {error}") from error

    def encode(self, modality: str, window: Float32) -> Float32:
        """The token (D,) of one window (channels, samples) in physical units; it is normalised here.

        Raises:
            DataError: The model has no such modality, or the window is of another shape.
            EngineError: The engine failed.
        """
        self._check(modality, window)
        token: Float32 = self._encode(modality, self.manifest.normalisation[modality].apply(window))["token"][0]
        return token

    def encode_normalised(self, modality: str, window: Float32) -> Float32:
        """The token (D,) of one window (channels, samples) that is normalised already.

        Raises:
            DataError: The model has no such modality, or the window is of another shape.
            NotANumberError: The window holds NaN or infinity.
            EngineError: The engine failed.
        """
        self._check(modality, window)
        token: Float32 = self._encode(modality, window)["token"][0]
        return token

    def begin(self, modality: str, window: Float32) -> tuple[Float32, Float32]:
        """Token (D,) and state of one window (channels, samples), normalised; errors as for :meth:`encode_normalised`.

        Its encoder must be one of :attr:`steps`.
        """
        self._check(modality, window)
        made = self._encode(modality, window)
        return made["token"][0], made["next_state"]

    def step(self, modality: str, ends: Float32, state: Float32) -> tuple[Float32, Float32]:
        """Token (D,) and state of the window that comes a hop after the window of ``state``.

        Args:
            modality: One of :attr:`steps`.
            ends: (channels, head + tail) what :func:`ends_of` gives, normalised.
            state: Of the window before.

        Raises:
            NotANumberError: A sample is NaN or infinite.
            EngineError: The engine failed.
        """
        _check_finite(modality, ends)
        made = self._steps[modality]({"window": np.asarray(ends, np.float32)[None], "state": state})
        return made["token"][0], made["next_state"]

    def encode_next(self, modality: str, window: Float32, before: Carried | None) -> tuple[Float32, Carried | None]:
        """The token (D,) of one window (channels, samples) in physical units, and the state for the next window.

        A step is taken where ``before`` holds for this window: the samples that it rests on are in it, a hop earlier,
        bit for bit the same. Else, and where the encoder is not incremental, the whole window is encoded.

        Raises:
            DataError: The model has no such modality, or the window is of another shape.
            EngineError: The engine failed.
        """
        step = self.steps.get(modality)
        if step is None:
            return self.encode(modality, window), None
        self._check(modality, window)
        normalisation, (oldest, newest) = self.manifest.normalisation[modality], step.rests_on
        if before is not None and before.samples == window[:, oldest - step.hop : newest - step.hop].tobytes():
            token, state = self.step(modality, normalisation.apply(ends_of(step, window)), before.state)
            self.stepped += 1
        else:
            token, state = self.begin(modality, normalisation.apply(window))
        return token, Carried(window[:, oldest:newest].tobytes(), state)

    def _encode(self, modality: str, window: Float32) -> dict[str, Float32]:
        _check_finite(modality, window)
        return self._encoders[modality]({"window": np.asarray(window, np.float32)[None]})

    def _check(self, modality: str, window: Float32) -> None:
        shape = self._shapes.get(modality)
        if shape is None:
            raise DataError(f"the model has no modality '{modality}'; it has {', '.join(self._shapes)}")
        if window.shape != shape:
            raise DataError(f"a window of '{modality}' must have the shape {shape}, not {window.shape}")

    def aggregate(self, tokens: Mapping[str, Float32]) -> tuple[Float32, Float32]:
        """Logits (labels,) and embedding (embedding_dim,) of the tokens that there are.

        A modality without a token is given its mask token. With prototypes, a logit is the negative squared Euclidean
        distance of the embedding from the label's prototype (Snell et al. 2017, arXiv 1703.05175).

        Args:
            tokens: Modality name to token (D,); at least one.

        Raises:
            DataError: There are no tokens, or a token is of an unknown modality or of another shape.
            NotANumberError: The scores are not finite: a decision is never NaN.
            EngineError: The engine failed.
        """
        if not tokens or not tokens.keys() <= self.mask_tokens.keys():
            raise DataError(f"a decision needs tokens of some of {', '.join(self.mask_tokens)}, not of {list(tokens)}")
        for name, place in self._places.items():
            token = tokens.get(name, self.mask_tokens[name])
            if token.shape != place.shape:
                raise DataError(f"a token must have the shape {place.shape}, not {token.shape} ({name})")
            place[:] = token
        result = self._aggregator({"tokens": self._row})
        if not all_finite(result["logits"]):
            raise NotANumberError(f"the scores of {', '.join(tokens)} are no finite numbers: the signal is too large")
        embedding: Float32 = result["embedding"][0]
        if self._prototypes is None:
            return result["logits"][0], embedding
        return -np.sum((self._prototypes - embedding) ** 2, axis=1), embedding

    def predict(self, windows: Mapping[str, Float32]) -> tuple[Float32, Float32]:
        """Logits (labels,) and embedding (embedding_dim,) of windows (channels, samples) in physical units.

        Args:
            windows: Modality name to window, for the modalities that are present; at least one.

        Raises:
            DataError: There are no windows, or a window is of an unknown modality or of another shape.
            EngineError: The engine failed.
        """
        return self.aggregate({name: self.encode(name, window) for name, window in windows.items()})

    def close(self) -> None:
        """Free the engine's memory; the model cannot be used afterwards."""
        for program in (*self._encoders.values(), *self._steps.values(), self._aggregator):
            program.close()


def _check_finite(modality: str, window: Float32) -> None:
    if not all_finite(window):
        raise NotANumberError(f"a window of '{modality}' holds samples that are no finite numbers; leave it out")
