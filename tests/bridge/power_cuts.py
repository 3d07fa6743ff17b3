"""Kill the installer of a board at every system call of a deploy, and see what the board starts with afterwards.

``python -m tests.bridge.power_cuts FOLDER [--every N] [--json FILE]``, in the repository's folder; needs strace.

An installer (``Agent.run_installer``) is run once under strace for the list of its system
calls. Then it is run again for each of them on a fresh copy of the board, and killed as it makes it
(``--inject=CALL:signal=KILL:when=N``), with everything it has started. The board then starts as its runtime does: it
settles its slot and opens the bundle in use. That must be whole, verified and the old one or the new one; or none at
all, where the board had none before.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from armlet_runtime.bundle.container import open_bundle
from armlet_runtime.bundle.trust import trusted_keys
from armlet_runtime.install import probation
from armlet_runtime.install.agent import HOME, Agent
from armlet_runtime.install.agent_protocol import UpdateState
from armlet_runtime.install.slot_deploy import deploy_to_slot, roll_back
from armlet_runtime.install.slots import current_bundle, current_place, read_state

ATTACH_S = 10.0


@dataclass
class Cuts:
    """What came of a scenario's cuts.

    Attributes:
        calls: System calls of the whole run.
        cut: How many of them it was killed at.
        started: What the board started with, to how often: ``old``, ``new``, or ``none``.
        by_call: System call to how often it was killed at it.
        wrong: What was not as it must be.
    """

    calls: int = 0
    cut: int = 0
    started: Counter[str] = field(default_factory=Counter)
    by_call: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)


def run_traced(work: Callable[[], None], options: Sequence[str]) -> int:
    """Run ``work`` in a process of its own under strace; how it ended, as :func:`os.waitstatus_to_exitcode` says it.

    A fork of this process, which has imported everything, so that the calls are those of the work.
    """
    pid = os.fork()
    if pid == 0:
        os.setsid()
        os.kill(os.getpid(), signal.SIGSTOP)
        try:
            work()
        finally:
            os._exit(0)
    os.waitpid(pid, os.WUNTRACED)
    strace = subprocess.Popen(["strace", "-qq", *options, "-p", str(pid)], stderr=subprocess.PIPE)
    end = time.monotonic() + ATTACH_S
    while "TracerPid:\t0\n" in Path(f"/proc/{pid}/status").read_text():
        if strace.poll() is not None or time.monotonic() > end:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            said = strace.communicate()[1].decode().strip()
            raise RuntimeError(f"strace could not attach: {said}")
        time.sleep(0.001)
    os.kill(pid, signal.SIGCONT)
    _, status = os.waitpid(pid, 0)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)  # a power cut ends what it had started, too
    strace.communicate()
    return os.waitstatus_to_exitcode(status)


def calls_of(work: Callable[[], None], log: Path) -> list[tuple[str, int]]:
    """The system calls of some work, in order: each with its number among those of its name."""
    if run_traced(work, ["-o", str(log)]) != 0:
        raise RuntimeError("the work does not even end when it is left alone")
    seen: Counter[str] = Counter()
    calls = []
    for line in log.read_text(errors="replace").splitlines():
        if name := re.match(r"([a-z_0-9]+)\(", line):
            seen[name[1]] += 1
            calls.append((name[1], seen[name[1]]))
    return calls


@contextlib.contextmanager
def home_of(board: Path) -> Iterator[None]:
    """Meanwhile ``ARMLET_HOME`` is that of the board."""
    before = os.environ.get("ARMLET_HOME")
    os.environ["ARMLET_HOME"] = str(board / HOME)
    try:
        yield
    finally:
        if before is None:
            del os.environ["ARMLET_HOME"]
        else:
            os.environ["ARMLET_HOME"] = before


def cut_everywhere(
    board: Path,
    prepare: Callable[[Path], Callable[[], None]],
    allowed: dict[str, str],
    every: int,
    names: Sequence[str] = (),
) -> Iterator[Cuts]:
    """Cut a scenario at every ``every``-th of its calls; the result so far after each.

    Args:
        board: The board as it is before; copied for each cut.
        prepare: Given a copy, the work that is cut short.
        allowed: Digest of a bundle that the board may start with, to what to call it; the empty one for none.
        every: 1 for all.
        names: Of calls of these names only; of all without any.
    """
    copy = board.with_name(board.name + "-cut")

    def anew() -> Callable[[], None]:
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(board, copy, symlinks=True)
        return prepare(copy)

    with home_of(copy):
        calls = calls_of(anew(), board.with_name("calls.log"))
    cuts = Cuts(calls=len(calls))
    chosen = [call for call in calls if not names or call[0] in names]
    for name, number in chosen[::every]:
        with home_of(copy):
            ended = run_traced(anew(), ["-o", "/dev/null", f"--inject={name}:signal=KILL:when={number}"])
        if ended == 0:  # this time it made fewer of these: waiting for another process goes now so, now so
            continue
        if ended != -signal.SIGKILL:
            cuts.wrong.append(f"{name} {number}: ended with {ended}")
        cuts.cut += 1
        cuts.by_call[name] += 1
        try:
            with home_of(copy):
                cuts.started[allowed[started_with(copy / "slot")]] += 1
                update = Agent(copy).hello()["update"]
            if update.state is UpdateState.UPDATING:
                raise RuntimeError(f"the board says that it is updating, for ever: {update}")
        except Exception as error:  # whatever it is, it is what this looks for
            cuts.wrong.append(f"{name} {number}: {type(error).__name__}: {error}")
        yield cuts
    shutil.rmtree(copy, ignore_errors=True)


def started_with(slot: Path) -> str:
    """Digest of the bundle that a board starts with, by itself; empty for none."""
    probation.settle(slot)
    if not slot.is_dir() or current_place(slot) is None:
        return ""
    if read_state(slot).probation is not None:
        raise RuntimeError("a probation is left that nobody watches")
    bundle = open_bundle(current_bundle(slot), trusted_keys())
    for name in bundle.sizes:
        bundle.read(name)
    return bundle.digest


def offer(prefix: Path, bundle: Path) -> None:
    """Bring all parts of a bundle to a board, as a workstation does."""
    from armlet_runtime.bundle.container import read_front

    agent, front, whole = Agent(prefix), read_front(bundle, None), open_bundle(bundle, None)
    names = {member.sha256: member.name for member in front.members}
    for part in agent.offer(front.data, None):
        agent.put(part.sha256, 0, whole.read(names[part.sha256]))


def scenarios(
    folder: Path, old: Path, new: Path, trust: Callable[[], None]
) -> dict[str, tuple[Path, Callable[[Path], Callable[[], None]], dict[str, str]]]:
    """The scenarios: for each, the board before, the work, and what the board may start with.

    ``trust``: makes the home named by ``ARMLET_HOME`` trust whoever signed the bundles.
    """
    digests = {"old": open_bundle(old, None).digest, "new": open_bundle(new, None).digest}
    names = {digests["old"]: "old", digests["new"]: "new"}

    def board(name: str, *work: Callable[[Path], object]) -> Path:
        prefix = folder / name
        with home_of(prefix):
            trust()
            for step in work:
                step(prefix)
        return prefix

    def deploy(bundle: Path) -> Callable[[Path], object]:
        return lambda prefix: deploy_to_slot(bundle, prefix / "slot")

    def install(prefix: Path) -> Callable[[], None]:
        return lambda: Agent(prefix).run_installer(None)

    arriving = board("arriving", deploy(old))
    first = board("first", lambda prefix: offer(prefix, old))
    second = board("second", deploy(old), lambda prefix: offer(prefix, new))
    back = board("back", deploy(new), deploy(old))
    return {
        "parts arrive": (arriving, lambda prefix: lambda: offer(prefix, new), names),
        "first deploy": (first, install, {"": "none", digests["old"]: "new"}),
        "next deploy": (second, install, names),
        "going back": (back, lambda prefix: lambda: void(roll_back(prefix / "slot", None)), names),
    }


def void(_: object) -> None:
    """Drop a result."""


def main(argv: Sequence[str] | None = None) -> int:
    """Cut all scenarios; 1 if a board did not start as it must."""
    from .conftest import small_bundle

    parser = argparse.ArgumentParser(prog="python -m tests.bridge.power_cuts", description=__doc__)
    parser.add_argument("folder", type=Path, help="an empty folder to work in, on the file system to try")
    parser.add_argument("--every", type=int, default=1, help="cut at every Nth call only (default: at each)")
    parser.add_argument("--json", type=Path, help="write the counts")
    args = parser.parse_args(argv)
    args.folder.mkdir(parents=True, exist_ok=True)
    from armlet_runtime.bundle import keys

    key = args.folder / "signing.key"
    owner = keys.generate(key).public_key()
    old, new = (small_bundle(args.folder, key, seed) for seed in (1, 2))
    results = {}
    for name, scenario in scenarios(args.folder, old, new, lambda: void(keys.trust(owner))).items():
        for cuts in cut_everywhere(*scenario, args.every):
            print(f"\r{name}: {cuts.cut} of {cuts.calls}", end="", file=sys.stderr, flush=True)
        print(file=sys.stderr)
        print(f"{name}: killed at {cuts.cut} of {cuts.calls} system calls; started with {dict(cuts.started)}")
        for sentence in cuts.wrong:
            print(f"  WRONG: {sentence}")
        results[name] = cuts
    total = sum(cuts.cut for cuts in results.values())
    wrong = sum(len(cuts.wrong) for cuts in results.values())
    print(f"{total} power cuts, {total - wrong} started a whole, verified bundle or had none before, {wrong} did not")
    if args.json:
        args.json.write_text(json.dumps({name: vars(cuts) for name, cuts in results.items()}, indent=1))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
