"""One example of a class that the model never saw: HAPT's postural transitions, enrolled on the programs of a bundle.

    armlet pretrain hapt-enrol --out runs/pretrain
    armlet finetune hapt-enrol --from runs/pretrain --out runs/finetune
    armlet export runs/finetune --engine litert --out enrol.armlet
    python -m benchmarks.studies.enrolment enrol.armlet --split validation

No training window of the recipe touches a transition. Each occurrence of each transition of each person is enrolled in
turn, from the windows that a live run would cut around it, and looked for among all others: of the same wearer, and of
the other people. The old classes are scored with and without the new one, on the windows that are theirs from end to
end. Of validation people, who are in the bundle's bank, a wearer's own windows are left out of it.

The rules of :mod:`armlet_runtime.model.prototypes` were chosen on validation people; test people were looked at after
that.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from armlet_runtime.bundle import open_bundle, trusted_keys
from armlet_runtime.errors import ArmletError
from armlet_runtime.files import write_json
from armlet_runtime.machine import describe
from armlet_runtime.metrics import confusion_matrix, f1_per_class
from armlet_runtime.modalities import subset_name, subsets
from armlet_runtime.model import Bank, BundleModel, Decider, Example, Layer, make_example
from armlet_runtime.model.policy import Policy
from armlet_train.data import load_corpus
from armlet_train.recipes import find_recipe, load_recipe

RECIPE = "hapt-enrol"
SHARE = 0.5
"""A window is one of a transition when at least so much of it is."""

ALLOWED = 1.0
"""Points of macro-F1 that an example may cost."""


@dataclass
class Windows:
    """All windows of some people, one hop apart.

    Attributes:
        tokens: Modality name to (n, token_dim).
        logits: Subset to (n, labels).
        embeddings: Subset to (n, embedding_dim).
        old: (n,) label of the model's that the window has from end to end, or -1.
        events: Of each occurrence of a transition: its index, who and the windows of it.
    """

    tokens: dict[str, NDArray[np.float32]]
    logits: dict[str, NDArray[np.float32]]
    embeddings: dict[str, NDArray[np.float32]]
    old: NDArray[np.int64]
    people: NDArray[np.str_]
    events: list[tuple[int, str, NDArray[np.int64]]]


def read(model: BundleModel, split: str) -> Windows:
    """Cut all windows, and run the bundle's programs on them in every subset."""
    recipe = load_recipe(find_recipe(RECIPE)).data
    known = len(recipe.labels)
    corpus = load_corpus(msgspec.structs.replace(recipe, labels=recipe.labels + recipe.hold_out, hold_out=()), split)
    starts = corpus.starts(labelled=False, every=round(recipe.hop_s * corpus.tick_hz))
    raw = corpus.windows(starts)
    points = np.stack([corpus.labels_of(starts + at * (corpus.length - 1) // 8) for at in range(9)], axis=1)
    people, recordings = corpus.people_of(starts), corpus.recordings_of(starts)
    is_label = (points == points[:, :1]).all(axis=1) & (points[:, 0] >= 0) & (points[:, 0] < known)

    tokens = {name: np.stack([model.encode(name, window) for window in windows]) for name, windows in raw.items()}
    logits, embeddings = {}, {}
    for subset in subsets(list(raw)):
        rows = [model.aggregate({name: tokens[name][row] for name in subset}) for row in range(len(starts))]
        logits[subset_name(subset)], embeddings[subset_name(subset)] = map(np.stack, zip(*rows, strict=True))

    events = []
    for index in range(len(recipe.hold_out)):
        share = (points == known + index).mean(axis=1)
        places = np.flatnonzero(share >= SHARE)
        breaks = np.flatnonzero((np.diff(places) > 1) | (recordings[places[1:]] != recordings[places[:-1]])) + 1
        events += [(index, str(people[event[0]]), event) for event in np.split(places, breaks) if len(event)]
    return Windows(tokens, logits, embeddings, np.where(is_label, points[:, 0], -1), people, events)


def bank_of(bank: Bank, windows: Windows, person: str, split: str) -> Bank:
    """The bundle's bank; of validation people without this person's windows, by their tokens."""
    if split != "validation":
        return bank
    theirs = np.concatenate([array[windows.people == person] for array in windows.tokens.values()], axis=1)
    rows = np.concatenate(list(bank.tokens.values()), axis=1)
    # The bank is of float16, and cut at the scoring stride, which is a multiple of the hop.
    known = {row.tobytes() for row in theirs.astype(np.float16)}
    keep = np.array([row.astype(np.float16).tobytes() not in known for row in rows])
    other = Bank.__new__(Bank)
    other.tokens = {name: array[keep] for name, array in bank.tokens.items()}
    other.windows = int(keep.sum())
    return other


@dataclass
class Trial:
    """One occurrence, enrolled. Shares are NaN where there is nothing to take a share of."""

    transition: int
    person: str
    own_found: float
    """Share of the wearer's other occurrences with a window that is given the new label."""
    others_found: float
    """The same of other people's."""
    own_loss: float
    """Macro-F1 of the old classes that the new one costs on the wearer's windows, in points."""
    others_loss: float
    alarms: float
    """Share of all windows of old classes that are given the new label."""


def enrol(model: BundleModel, bank: Bank, windows: Windows, event: NDArray[np.int64]) -> Example:
    """The example that the windows of an occurrence make."""
    shown = [{name: array[row] for name, array in windows.tokens.items()} for row in event]
    return make_example(model, bank, shown, "an occurrence")


def trial(
    model: BundleModel, example: Example, windows: Windows, subset: str, plain: NDArray[np.int64], number: int
) -> Trial:
    """Look for the other occurrences of what an example is of."""
    transition, person, _ = windows.events[number]
    decider = Decider(model.manifest, Policy(unknown_below=0.0, layer=Layer(1, "").enrol("new", example)))
    classes = len(model.manifest.labels)
    prototypes = np.array([prototype.embedding for prototype in example.prototypes[subset]], np.float32)
    radii = np.array([prototype.radius for prototype in example.prototypes[subset]])
    # Only windows that are near can be decided otherwise; the runtime's own rule says of these which are.
    distance = np.linalg.norm(windows.embeddings[subset][:, None] - prototypes[None], axis=2)
    labels = plain.copy()
    for row in np.flatnonzero((distance < 1.01 * radii).any(axis=1)):
        logits, embedding = windows.logits[subset][row].tolist(), windows.embeddings[subset][row].tolist()
        if decider.decide(subset, logits, embedding).raw_label == "new":
            labels[row] = classes

    def loss(mine: NDArray[np.bool_]) -> float:
        rows = mine & (windows.old >= 0)
        before, after = (
            np.nanmean(f1_per_class(confusion_matrix(windows.old[rows], predicted[rows], classes + 1))[:classes])
            for predicted in (plain, labels)
        )
        return 100 * float(before - after)

    def found(others: Sequence[NDArray[np.int64]]) -> float:
        return float(np.mean([(labels[rows] == classes).any() for rows in others])) if others else float("nan")

    same = [(who, rows) for at, (kind, who, rows) in enumerate(windows.events) if kind == transition and at != number]
    return Trial(
        transition, person,
        found([rows for who, rows in same if who == person]), found([rows for who, rows in same if who != person]),
        loss(windows.people == person), loss(windows.people != person),
        float(np.mean(labels[windows.old >= 0] == classes)),
    )  # fmt: skip


def main() -> int:
    """Print a row for each subset."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--split", choices=["validation", "test"], default="validation")
    parser.add_argument("--key", type=Path, action="append", default=[], help="public key to trust")
    parser.add_argument("--json", type=Path, help="write every trial")
    args = parser.parse_args()
    try:
        bundle = open_bundle(args.bundle, trusted_keys(args.key))
        model = BundleModel.from_bundle(bundle)
        bank = Bank(bundle.manifest, bundle.read)
        windows = read(model, args.split)
    except ArmletError as error:
        print(f"enrolment: {error}", file=sys.stderr)
        return 2
    transitions = load_recipe(find_recipe(RECIPE)).data.hold_out
    banks = {person: bank_of(bank, windows, person, args.split) for person in {who for _, who, _ in windows.events}}
    print(f"{args.split} people, {model.engine.name} {model.engine.version}, {describe().cpu}")
    of_old = int((windows.old >= 0).sum())
    print(f"{len(windows.events)} occurrences, {of_old} windows of old classes; {bank.windows} windows in the bank")
    examples = [enrol(model, banks[who], windows, event) for _, who, event in windows.events]
    results = {}
    for subset in (subset_name(one) for one in subsets([one.name for one in bundle.manifest.modalities])):
        plain = windows.logits[subset].argmax(axis=1)
        trials = [trial(model, one, windows, subset, plain, number) for number, one in enumerate(examples)]
        results[subset] = trials

        def mean(of: str, trials: Sequence[Trial] = trials) -> float:
            return float(np.nanmean([getattr(one, of) for one in trials]))

        print(
            f"{subset:9} found again: same wearer {mean('own_found'):.2f}, other people {mean('others_found'):.2f}; "
            f"old classes lose {mean('own_loss'):.2f} points of macro-F1 on the wearer "
            f"(worst {max(one.own_loss for one in trials):.1f}; more than {ALLOWED:g} by "
            f"{sum(one.own_loss > ALLOWED for one in trials)} of {len(trials)}), "
            f"{mean('others_loss'):.2f} on other people (worst {max(one.others_loss for one in trials):.1f}); "
            f"{100 * mean('alarms'):.2f} % of their windows taken"
        )
        summary = (
            f"{name} {np.nanmean([one.others_found for one in trials if one.transition == index]):.2f}"
            for index, name in enumerate(transitions)
        )
        print(f"{'':9} found again of other people by transition: {', '.join(summary)}")
    if args.json:
        write_json(
            args.json, {"split": args.split, "transitions": transitions, "machine": describe(), "trials": results}
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
