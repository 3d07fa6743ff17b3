"""The ``armlet`` command. It finds its commands by entry point, so that the runtime imports no other package.

A command is a module with ``NAME``, ``HELP`` (a line), ``EXAMPLE`` (command lines), ``EXTRA`` (the extra that it needs,
or an empty string), ``add_arguments(parser)`` and ``run(args) -> int``. Such a module imports heavy
packages only inside ``run``.
"""

from __future__ import annotations

import argparse
import os
import sys
from importlib.metadata import EntryPoint, entry_points, version
from types import ModuleType
from typing import cast

from .errors import ArmletError, MissingExtraError, UsageError
from .log import add_log_options, logging_to

GROUP = "armlet.commands"
# The order of work, which is that of ``armlet --help``; other commands come last.
ORDER = (
    "demo", "data", "pretrain", "finetune", "evaluate", "export", "inspect",
    "verify", "key", "board", "deploy", "run", "enrol", "replay", "record", "recordings", "service", "wearables",
    "bench",
)  # fmt: skip


def _load_commands(argv: list[str]) -> dict[str, ModuleType]:
    """The command that ``argv`` begins with, or else all commands: a board imports only the command that it runs."""
    entries = {entry.name: entry for entry in entry_points(group=GROUP)}
    names = sorted(entries, key=lambda name: (ORDER.index(name) if name in ORDER else len(ORDER), name))
    return {name: _load(entries[name]) for name in [name for name in names if argv[:1] == [name]] or names}


def _load(entry: EntryPoint) -> ModuleType:
    try:
        return cast(ModuleType, entry.load())
    except ModuleNotFoundError as error:
        if error.name != entry.module:
            raise
        raise UsageError(
            f"'armlet {entry.name}' is registered as {entry.module}, which does not exist: the installation is older "
            f"than its files; install armlet again (in a checkout: pip install -e .)"
        ) from error


def _parser(commands: dict[str, ModuleType]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="armlet",
        description="Multimodal wearable-sensor models on small boards.",
        epilog="'armlet COMMAND --help' explains a command with an example.",
    )
    parser.add_argument("--version", action="version", version=f"armlet {version('armlet')}")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, module in commands.items():
        sub = subparsers.add_parser(
            name,
            help=module.HELP,
            description=module.HELP,
            epilog=f"example:\n  {module.EXAMPLE}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        module.add_arguments(sub)
        add_log_options(sub)
        sub.set_defaults(module=module)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run a command; 0 for success, 1 for a result that failed its check, 2 for an error, 130 after Ctrl-C."""
    argv = sys.argv[1:] if argv is None else argv
    try:
        args = _parser(_load_commands(argv)).parse_args(argv)
    except UsageError as error:
        print(f"armlet: {error}", file=sys.stderr)
        return 2
    module: ModuleType = args.module
    try:
        result = getattr(args, "json", None)
        if result is not None and not result.parent.is_dir():
            # Reported before the work, not after it.
            raise UsageError(f"--json {result}: there is no folder {result.parent}")
        with logging_to(args.log, args.log_level):
            code = int(module.run(args))
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # the reader has ended, as 'head' does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # buffered text is flushed at the exit
        return 1
    except ModuleNotFoundError as error:
        # A missing module of armlet is a bug; any other missing module belongs to an extra that is not installed.
        if not module.EXTRA or (error.name or "").startswith("armlet"):
            raise
        needed = MissingExtraError(
            f"'armlet {module.NAME}' needs the package '{error.name}', which is not installed: "
            f"pip install 'armlet[{module.EXTRA}]'"
        )
        print(f"armlet: {needed}", file=sys.stderr)
        return 2
    except ArmletError as error:
        print(f"armlet: {error}", file=sys.stderr)
        return 2
    except OSError as error:  # a full disk or an unreadable folder, and no bug
        where = f"{error.filename}: " if error.filename is not None else ""
        print(f"armlet: {where}{error.strerror or error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("armlet: interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
