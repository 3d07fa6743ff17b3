"""Boards over SSH: setup, deploys, fleets.

Imports the runtime.
"""

from .environment import remove, setup
from .fleet import deploy_to_fleet, named_boards, read_inventory, table, totals
from .roster import status, statuses
from .target import FLEET, Deployed, connect, deploy, parse_target

__all__ = [
    "FLEET",
    "Deployed",
    "connect",
    "deploy",
    "deploy_to_fleet",
    "named_boards",
    "parse_target",
    "read_inventory",
    "remove",
    "setup",
    "status",
    "statuses",
    "table",
    "totals",
]
