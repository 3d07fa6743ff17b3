"""``armlet inspect``: what is in a bundle."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from .model_arguments import add_bundle_arguments, load_bundle

if TYPE_CHECKING:
    from rich.console import Console

    from ..bundle import Bundle, Certificate, Confidence, Manifest

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
    """Verify the bundle and show it."""
    from rich.console import Console

    from ..bundle import decode_certificate
    from ..files import write_json

    bundle = load_bundle(args)
    certificate = decode_certificate(bundle.read(bundle.manifest.certificate))
    console = Console(highlight=False, markup=False)
    _show_facts(console, bundle)
    _show_certificate(console, certificate)
    if bundle.manifest.confidence is not None:
        _show_calibration(console, certificate, bundle.manifest.confidence)
    if certificate.programs:
        _show_programs(console, certificate)
    console.print(f"{len(bundle.sizes)} members, {sum(bundle.sizes.values()) / 1024:.1f} KiB")
    if args.json:
        contents = {"digest": bundle.digest, "signers": bundle.signers, "sizes": bundle.sizes}
        write_json(args.json, {**contents, "manifest": bundle.manifest, "certificate": certificate})
    return 0


def _show_facts(console: Console, bundle: Bundle) -> None:
    """The manifest and its programs."""
    from rich.table import Table

    from ..views import figures_table

    manifest, presence = bundle.manifest, bundle.manifest.presence
    facts = Table.grid(padding=(0, 2))
    facts.add_row("model", f"{manifest.name} {manifest.version}, made {manifest.created}")
    facts.add_row("digest", bundle.digest)
    facts.add_row("signed by", ", ".join(bundle.signers))
    facts.add_row("window", f"{manifest.window.length_s:g} s every {manifest.window.hop_s:g} s")
    for modality in manifest.modalities:
        channels = " ".join(modality.channels)
        facts.add_row("modality", f"{modality.name}: {channels} in {modality.unit} at {modality.rate_hz:g} Hz")
    facts.add_row("labels", ", ".join(manifest.labels))
    facts.add_row(
        "presence",
        f"stale after {presence.stale_after_s:g} s, coverage at least {presence.min_coverage:g} "
        f"({presence.return_coverage:g} to return), waits up to {presence.max_wait_s:g} s",
    )
    facts.add_row("smoothing", _smoothing(manifest))
    facts.add_row("incremental", _incremental(manifest))
    facts.add_row("made with", ", ".join(f"{package} {version}" for package, version in manifest.made_with.items()))
    console.print(facts)
    programs = figures_table("engine", "program", "precision", "KiB", aligned_left=3)
    for engine, parts in manifest.engines.items():
        for ref in parts.by_part.values():
            programs.add_row(engine, ref.member, ref.precision, f"{bundle.sizes[ref.member] / 1024:.1f}")
    console.print(programs)


def _show_certificate(console: Console, certificate: Certificate) -> None:
    """The quality of each subset; cosines are in the JSON file only, because 80 columns have no room for them."""
    from ..views import SubsetCell, figures_table

    console.print(
        f"certificate: {certificate.windows} windows of {len(certificate.people)} people, {certificate.data}; "
        f"interval: {certificate.interval or 'none'}; distances are of logits from the float PyTorch model",
        soft_wrap=True,
    )
    table = figures_table("subset", "engine", "macro-F1", "interval", "PyTorch", "max", "RMSE", "agree")
    for row in certificate.rows:
        interval = "" if row.macro_f1_low is None else f"{row.macro_f1_low:.2f}-{row.macro_f1_high:.2f}"
        table.add_row(
            SubsetCell(row.subset), row.engine, f"{row.macro_f1:.4f}", interval, f"{row.macro_f1_pytorch:.4f}",
            f"{row.max_distance:.2g}", _dash(row.rmse, ".2g"), f"{row.agreement:.4f}",
        )  # fmt: skip
    console.print(table)


def _show_calibration(console: Console, certificate: Certificate, confidence: Confidence) -> None:
    """The calibration error of each subset, and the share of unknown windows."""
    from ..views import SubsetCell, figures_table

    console.print(f"calibration error: {certificate.calibration}", soft_wrap=True)
    table = figures_table("subset", "engine", "temperature", "plain", "calibrated", "unknown")
    for row in certificate.rows:
        table.add_row(
            SubsetCell(row.subset), row.engine, f"{confidence.temperature[row.subset]:.3g}",
            _dash(row.ece_uncalibrated, ".4f"), _dash(row.ece, ".4f"), _dash(row.unknown, ".2%"),
        )  # fmt: skip
    console.print(table)
    below = confidence.unknown_below
    console.print(f"unknown below a probability of {below:g}" if below else "nothing is unknown")


def _show_programs(console: Console, certificate: Certificate) -> None:
    """How near each program is to PyTorch."""
    from ..views import figures_table

    console.print("each program against PyTorch with its rounding simulated:")
    table = figures_table("engine", "program", "precision", "cosine", "RMSE", "max", "agree", aligned_left=3)
    for program in certificate.programs:
        table.add_row(
            program.engine, program.part, program.precision, f"{program.cosine:.6f}", f"{program.rmse:.3g}",
            f"{program.max_distance:.3g}", _dash(program.agreement, ".4f"),
        )  # fmt: skip
    console.print(table)
    versions = ", ".join(f"{name} {number}" for name, number in certificate.versions.items())
    console.print(f"measured with {versions}", soft_wrap=True)


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
    reads = [f"{name} reads {step.head + step.tail} of {lengths[name]} samples a hop" for name, step in steps.items()]
    return ", ".join(reads) or "none"


def _dash(value: float | None, pattern: str) -> str:
    return "-" if value is None else format(value, pattern)
