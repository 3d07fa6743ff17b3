"""How a board takes a bundle: slots, deploys, probation, the floor of releases, the agent, and the unit that runs it.

Imports the root, the engines, the bundle and the model.
"""

from . import child_process, frames
from .agent import LOG_LINES
from .health import DEPLOY_CHECK, Health
from .probation import DECISIONS, TRIAL_RUN, Follower, ProbationError, bound_s, open_settled
from .rollback_protection import floor, permit
from .slot_deploy import HealthError, deploy_to_slot, slot_folder
from .slots import PLACES, SCHEME, Board, PlaceState, Report, bundle_path, current_bundle, read_state
from .systemd_unit import UNIT, install, journal, properties, remove, state, unit_path, unit_text
from .updates import Result, State, Update

__all__ = [
    "DECISIONS",
    "DEPLOY_CHECK",
    "LOG_LINES",
    "PLACES",
    "SCHEME",
    "TRIAL_RUN",
    "UNIT",
    "Board",
    "Follower",
    "Health",
    "HealthError",
    "PlaceState",
    "ProbationError",
    "Report",
    "Result",
    "State",
    "Update",
    "bound_s",
    "bundle_path",
    "child_process",
    "current_bundle",
    "deploy_to_slot",
    "floor",
    "frames",
    "install",
    "journal",
    "open_settled",
    "permit",
    "properties",
    "read_state",
    "remove",
    "slot_folder",
    "state",
    "unit_path",
    "unit_text",
]
