"""Bundles and trust: container, manifest, signatures, keys.

Imports the root and the signals.
"""

from . import container, dsse, keys, trust
from .bundle_writer import add_signature, write_bundle
from .certificate import Certificate, CertificateRow, ProgramRow, decode_certificate
from .container import MANIFEST, Bundle, Front, Member, open_bundle, open_front, read_front
from .dsse import open_envelope, seal
from .keys import default_signing_key, home, key_id, load_private
from .manifest import (
    AGGREGATOR,
    HOP_SLACK,
    MANIFEST_SCHEMA,
    MAX_MAJORITY,
    UNKNOWN,
    Confidence,
    EnginePrograms,
    GoldenRef,
    HiddenMarkov,
    Majority,
    Manifest,
    Presence,
    ProgramRef,
    StepProgram,
    step_of,
)
from .manifest_file import decode_manifest, encode_manifest, named_members, seconds_of
from .trust import Trust, adopt, check_next, next_set, trusted_keys

__all__ = [
    "AGGREGATOR",
    "HOP_SLACK",
    "MANIFEST",
    "MANIFEST_SCHEMA",
    "MAX_MAJORITY",
    "UNKNOWN",
    "Bundle",
    "Certificate",
    "CertificateRow",
    "Confidence",
    "EnginePrograms",
    "Front",
    "GoldenRef",
    "HiddenMarkov",
    "Majority",
    "Manifest",
    "Member",
    "Presence",
    "ProgramRef",
    "ProgramRow",
    "StepProgram",
    "Trust",
    "add_signature",
    "adopt",
    "check_next",
    "container",
    "decode_certificate",
    "decode_manifest",
    "default_signing_key",
    "dsse",
    "encode_manifest",
    "home",
    "key_id",
    "keys",
    "load_private",
    "named_members",
    "next_set",
    "open_bundle",
    "open_envelope",
    "open_front",
    "read_front",
    "seal",
    "seconds_of",
    "step_of",
    "trust",
    "trusted_keys",
    "write_bundle",
]
