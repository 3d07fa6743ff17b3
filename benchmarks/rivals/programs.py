"""What ``make_programs.py`` makes, for who measures it: no torch here."""

from __future__ import annotations

import json
from pathlib import Path

from armlet_runtime.engines import Program, Shapes, get_engine

MODALITIES = ("acc", "gyro")
CHANNELS, SAMPLES, TOKEN, EMBEDDING, LABELS = 3, 128, 64, 64, 6
WINDOW, TOKENS = (1, CHANNELS, SAMPLES), (1, len(MODALITIES) * TOKEN)
RESULTS = {"logits": (1, LABELS), "embedding": (1, EMBEDDING)}
KINDS = ("conv", "attention")


def load_parts(folder: Path, kind: str, precision: str, engine: str) -> dict[str, Program]:
    """Encoders by modality, and the ``aggregator``, of armlet's export."""
    suffix = {"executorch": "pte", "litert": "tflite"}[engine]
    load = get_engine(engine).load
    parts = {
        name: load(folder / f"{kind}_{name}_{precision}.{suffix}", {"window": WINDOW}, {"token": (1, TOKEN)})
        for name in MODALITIES
    }
    aggregator = load(folder / f"{kind}_aggregator_{precision}.{suffix}", {"tokens": TOKENS}, RESULTS)
    return {**parts, "aggregator": aggregator}


def load_plain(folder: Path, kind: str) -> Program:
    """The whole model in one .pte, by the recipe of ExecuTorch's documentation."""
    inputs = dict.fromkeys(MODALITIES, WINDOW)
    return get_engine("executorch").load(folder / f"{kind}_plain_int8.pte", inputs, RESULTS)


def manifest(folder: Path, kind: str) -> str:
    """For ``bare_process.py``: files and shapes of armlet's int8 .pte programs, and the plain one, as JSON."""

    def part(name: str, inputs: Shapes, outputs: Shapes) -> dict[str, object]:
        return {"file": str(folder / f"{kind}_{name}_int8.pte"), "inputs": inputs, "outputs": outputs}

    encoders = {name: part(name, {"window": WINDOW}, {"token": (1, TOKEN)}) for name in MODALITIES}
    aggregator = part("aggregator", {"tokens": TOKENS}, RESULTS)
    plain = str(folder / f"{kind}_plain_int8.pte")
    return json.dumps({"encoders": encoders, "aggregator": aggregator, "plain": plain})
