"""``armlet verify``: check that a bundle is trusted, and that this machine reproduces its golden outputs."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from .model_arguments import add_bundle_arguments, load_bundle

NAME = "verify"
HELP = "Check a bundle's signature and contents; with --golden also the results of this machine's engines."
EXAMPLE = """armlet verify model.armlet --key signing.key.pub
  armlet verify model.armlet --golden"""
EXTRA = ""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line."""
    add_bundle_arguments(parser)
    parser.add_argument(
        "--golden", action="store_true", help="run the golden windows on every engine that can be used here"
    )
    parser.add_argument("--engine", metavar="NAME", help="golden run on this engine only")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the result as JSON")


def run(args: argparse.Namespace) -> int:
    """Verify; 1 if a golden run failed."""
    from ..checks import engines_to_measure
    from ..files import write_json
    from ..model import BundleModel, run_golden

    bundle = load_bundle(args)
    print(f"{args.bundle}: whole, and signed by trusted keys ({', '.join(bundle.signers)}); digest {bundle.digest}")

    engines, skipped, results = list[str](), dict[str, str](), []
    if args.engine or args.golden:
        engines, skipped = engines_to_measure(bundle, [args.engine] if args.engine else [])
    for name in engines:
        result = run_golden(BundleModel.from_bundle(bundle, name), bundle.read)
        results.append(result)
        print(
            f"golden run on {name} {result.version} ({result.detail}): {'passed' if result.passed else 'FAILED'}; "
            f"{result.windows} windows, {result.precision}, largest difference {result.max_difference:.3g}, "
            f"allowed {result.tolerance:g}"
            + (f"; steps differ by {result.steps:.3g} from whole windows" if result.steps is not None else "")
            + "".join(f"; failed: {check}" for check in result.failed)
        )
    for name, reason in skipped.items():
        print(f"golden run on {name}: not done, {reason}")

    passed = all(result.passed for result in results)
    if args.json:
        report = {"digest": bundle.digest, "signers": bundle.signers, "golden": results, "skipped": skipped}
        write_json(args.json, {**report, "passed": passed})
    if not passed:
        print("armlet: this machine's results are not those that the bundle was certified with", file=sys.stderr)
    return 0 if passed else 1
