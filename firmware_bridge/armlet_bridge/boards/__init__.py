"""Boards over SSH: setup, deploys, fleets.

Imports the runtime.
"""

from .environment import remove, setup
from .fleet import deploy_to_fleet, named_boards, read_inventory, table, totals
from .push import Deployed, push_bundle
from .roster import status, statuses
from .ssh import connect
from .target import FLEET, parse_target

__all__ = [
    "FLEET",
    "Deployed",
    "connect",
    "deploy_to_fleet",
    "named_boards",
    "parse_target",
    "push_bundle",
    "read_inventory",
    "remove",
    "setup",
    "status",
    "statuses",
    "table",
    "totals",
]
