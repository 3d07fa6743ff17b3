"""Names of boards, as a person writes them."""

from __future__ import annotations

import re

import msgspec

from armlet_runtime.errors import UsageError

FLEET = "fleet:"
"""How an inventory (:mod:`armlet_bridge.boards.fleet`) is written where a target is asked for: ``fleet:FILE.toml``."""


class Target(msgspec.Struct, frozen=True):
    """``ssh://[user@]host[:port]``."""

    host: str
    user: str | None = None
    port: int | None = None

    def __str__(self) -> str:
        """As a person writes it."""
        return "ssh://" + (f"{self.user}@" if self.user else "") + self.host + (f":{self.port}" if self.port else "")


def parse_target(text: str) -> Target:
    """Read a target.

    Raises:
        UsageError: The text is not an address of a board.
    """
    name = r"[A-Za-z0-9][A-Za-z0-9._-]*"
    match = re.fullmatch(rf"ssh://(?:({name})@)?({name}|\[[0-9A-Fa-f:.]+\])(?::([0-9]{{1,5}}))?/?", text)
    if match is None or (match[3] and not 0 < int(match[3]) < 65536):
        raise UsageError(f"'{text}' is not a board's address: write ssh://user@host, or ssh://user@host:port")
    return Target(match[2].strip("[]"), match[1], int(match[3]) if match[3] else None)
