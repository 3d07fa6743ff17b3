"""``armlet inspect``: what is in a bundle."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from .model_arguments import add_bundle_arguments, load_bundle

if TYPE_CHECKING:
    from ..bundle import Manifest

NAME = "inspect"
HELP = "Show what is in a bundle: model, engines, certificate, sizes and signer."
EXAMPLE = """armlet inspect model.armlet
  armlet inspect file:/var/lib/armlet/slot --json bundle.json"""
EXTRA = ""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line."""
    add_bundle_arguments(parser)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all of it as JSON")


def run(args: argparse.Namespace) -> int:
    """Show the bundle, which is verified first."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    from ..bundle import decode_certificate
    from ..files import write_json

    bundle = load_bundle(args)
    manifest = bundle.manifest
    certificate = decode_certificate(bundle.read(manifest.certificate))

    console = Console(highlight=False, markup=False)
    facts = Table.grid(padding=(0, 2))
    facts.add_row("model", f"{manifest.name} {manifest.version}, made {manifest.created}")
    facts.add_row("digest", bundle.digest)
    facts.add_row("signed by", ", ".join(bundle.signers))
    facts.add_row("window", f"{manifest.window.length_s:g} s every {manifest.window.hop_s:g} s")
    for modality in manifest.modalities:
        channels = " ".join(modality.channels)
        facts.add_row("modality", f"{modality.name}: {channels} in {modality.unit} at {modality.rate_hz:g} Hz")
    facts.add_row("labels", ", ".join(manifest.labels))
    presence = manifest.presence
    facts.add_row(
        "presence",
        f"stale after {presence.stale_after_s:g} s, coverage at least {presence.min_coverage:g} "
        f"({presence.return_coverage:g} to return), waits up to {presence.max_wait_s:g} s",
    )
    facts.add_row("smoothing", _smoothing(manifest))
    facts.add_row("incremental", _incremental(manifest))
    facts.add_row("made with", ", ".join(f"{package} {number}" for package, number in manifest.made_with.items()))
    console.print(facts)

    programs = Table("engine", "program", "precision", "KiB", box=box.SIMPLE_HEAD)
    programs.columns[-1].justify = "right"
    for engine, parts in manifest.engines.items():
        for ref in parts.by_part.values():
            programs.add_row(engine, ref.member, ref.precision, f"{bundle.sizes[ref.member] / 1024:.1f}")
    console.print(programs)

    console.print(
        f"certificate: {certificate.windows} windows of {len(certificate.people)} people, {certificate.data}; "
        f"interval: {certificate.interval or 'none'}; distances are of logits from the float PyTorch model",
        soft_wrap=True,
    )
    # As much as 80 columns hold; the cosines are in the JSON file.
    rows = Table("subset", "engine", "macro-F1", "interval", "PyTorch", "max", "RMSE", "agree", box=box.SIMPLE_HEAD)
    rows.pad_edge = False
    rows.columns[0].overflow = "fold"
    for row in certificate.rows:
        interval = "" if row.macro_f1_low is None else f"{row.macro_f1_low:.2f}-{row.macro_f1_high:.2f}"
        rows.add_row(
            row.subset, row.engine, f"{row.macro_f1:.4f}", interval, f"{row.macro_f1_pytorch:.4f}",
            f"{row.max_distance:.2g}", _dash(row.rmse, ".2g"), f"{row.agreement:.4f}",
        )  # fmt: skip
    console.print(rows)
    if manifest.confidence is not None:
        console.print(f"calibration error: {certificate.calibration}", soft_wrap=True)
        sure = Table("subset", "engine", "temperature", "plain", "calibrated", "unknown", box=box.SIMPLE_HEAD)
        sure.pad_edge = False
        for row in certificate.rows:
            sure.add_row(
                row.subset, row.engine, f"{manifest.confidence.temperature[row.subset]:.3g}",
                _dash(row.ece_uncalibrated, ".4f"), _dash(row.ece, ".4f"), _dash(row.unknown, ".2%"),
            )  # fmt: skip
        console.print(sure)
        below = manifest.confidence.unknown_below
        console.print(f"unknown below a probability of {below:g}" if below else "nothing is unknown")
    if certificate.programs:
        console.print("each program against PyTorch with its rounding simulated:")
        near = Table("engine", "program", "precision", "cosine", "RMSE", "max", "agree", box=box.SIMPLE_HEAD)
        near.pad_edge = False
        for program in certificate.programs:
            near.add_row(
                program.engine, program.part, program.precision, f"{program.cosine:.6f}", f"{program.rmse:.3g}",
                f"{program.max_distance:.3g}", _dash(program.agreement, ".4f"),
            )  # fmt: skip
        console.print(near)
        versions = ", ".join(f"{name} {number}" for name, number in certificate.versions.items())
        console.print(f"measured with {versions}", soft_wrap=True)
    size = sum(bundle.sizes.values())
    console.print(f"{len(bundle.sizes)} members, {size / 1024:.1f} KiB")

    if args.json:
        write_json(
            args.json,
            {
                "digest": bundle.digest,
                "signers": bundle.signers,
                "sizes": bundle.sizes,
                "manifest": manifest,
                "certificate": certificate,
            },
        )
    return 0


def _smoothing(manifest: Manifest) -> str:
    from ..bundle import HiddenMarkov, Majority

    match manifest.smoothing:
        case Majority(windows=windows):
            return f"majority of {windows} windows"
        case HiddenMarkov():
            return "hidden Markov model"
    return "none"


def _incremental(manifest: Manifest) -> str:
    steps = next(iter(manifest.engines.values())).steps
    lengths = {modality.name: manifest.window.samples(modality) for modality in manifest.modalities}
    told = [f"{name} reads {step.head + step.tail} of {lengths[name]} samples a hop" for name, step in steps.items()]
    return ", ".join(told) or "none"


def _dash(value: float | None, pattern: str) -> str:
    return "-" if value is None else format(value, pattern)
