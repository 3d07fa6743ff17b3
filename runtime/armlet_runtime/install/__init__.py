"""How a board takes a bundle: slots, deploys, probation, the floor of releases, the agent, and the unit that runs it.

Imports the root, the engines, the bundle and the model.
"""

from .agent import LOG_LINES
from .agent_protocol import LENGTHS, Update, UpdateResult, UpdateState, decode_message, frame_sizes, pack_frame
from .child_process import DEPLOY_CHECK, TRIAL_RUN, check_command, reason_of
from .health import Health
from .probation import DECISIONS, Follower, ProbationError, bound_s, open_settled
from .rollback_protection import floor, permit
from .slot_deploy import HealthError, deploy_to_slot, slot_folder
from .slots import (
    PLACES,
    SCHEME,
    BoardDescription,
    PlaceState,
    Report,
    bundle_path,
    current_bundle,
    current_place,
    read_state,
)
from .systemd_unit import UNIT, install, journal, properties, remove, state, unit_path, unit_text

__all__ = [
    "DECISIONS",
    "DEPLOY_CHECK",
    "LENGTHS",
    "LOG_LINES",
    "PLACES",
    "SCHEME",
    "TRIAL_RUN",
    "UNIT",
    "BoardDescription",
    "Follower",
    "Health",
    "HealthError",
    "PlaceState",
    "ProbationError",
    "Report",
    "Update",
    "UpdateResult",
    "UpdateState",
    "bound_s",
    "bundle_path",
    "check_command",
    "current_bundle",
    "current_place",
    "decode_message",
    "deploy_to_slot",
    "floor",
    "frame_sizes",
    "install",
    "journal",
    "open_settled",
    "pack_frame",
    "permit",
    "properties",
    "read_state",
    "reason_of",
    "remove",
    "slot_folder",
    "state",
    "unit_path",
    "unit_text",
]
