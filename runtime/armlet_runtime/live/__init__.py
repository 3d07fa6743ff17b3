"""The live loop and its surroundings: the bundle it runs, its outputs, and the summary of a run.

Imports the root, the signals, the bundle, the model and the install wing.
"""

from .core import LONGEST_SILENCE_NS, NOT_A_NUMBER, LiveCore, stale_ns
from .decision_lines import DecisionLines, LiveDecisionLines
from .enrol_recording import Stretch, other_occurrences, recorded_windows
from .open_bundle import Opened, layer_path, open_model, wait_for_bundle
from .output_folder import OutputFolder, is_folder
from .outputs import Comparison, Output, ServiceOutput
from .page_controls import RunControls
from .recording_output import RecordingOutput
from .run import Run
from .sd_notify import Notifier
from .sinks import mqtt_address, mqtt_login, open_sinks
from .slot_watch import SlotWatch
from .summary import Summary, Tally, since_process_start_s

__all__ = [
    "LONGEST_SILENCE_NS",
    "NOT_A_NUMBER",
    "Comparison",
    "DecisionLines",
    "LiveCore",
    "LiveDecisionLines",
    "Notifier",
    "Opened",
    "Output",
    "OutputFolder",
    "RecordingOutput",
    "Run",
    "RunControls",
    "ServiceOutput",
    "SlotWatch",
    "Stretch",
    "Summary",
    "Tally",
    "is_folder",
    "layer_path",
    "mqtt_address",
    "mqtt_login",
    "open_model",
    "open_sinks",
    "other_occurrences",
    "recorded_windows",
    "since_process_start_s",
    "stale_ns",
    "wait_for_bundle",
]
