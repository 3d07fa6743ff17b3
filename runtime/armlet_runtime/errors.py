"""The one exception tree of armlet: every error that a person can cause or mend derives from :class:`ArmletError`.

The command line prints ``str(error)`` as one sentence and exits with 2. A message says what is wrong, where, and what
to do.
"""


class ArmletError(Exception):
    """Base of every error that armlet raises on purpose."""


class UsageError(ArmletError):
    """The command or call was given something that it cannot take."""


class MissingExtraError(ArmletError):
    """A command or engine needs a package that is not installed; the message names the extra to install."""


class DataError(ArmletError):
    """A data set, recording or window cannot be read or is not what its description says."""


class ForeignRecordingError(DataError):
    """An MCAP file is whole, but holds no armlet recording: somebody else wrote it."""


class NotANumberError(DataError):
    """A window holds, or a model gave, something that is no finite number; no decision rests on it."""


class RecipeError(ArmletError):
    """A recipe has an unknown key, a wrong type or an impossible value."""


class RunError(ArmletError):
    """A training run folder is missing something, or does not fit what is asked of it."""


class BundleError(ArmletError):
    """A bundle cannot be used; the subclasses say why."""


class TruncatedBundleError(BundleError):
    """A bundle ends early."""


class TrailingBytesError(BundleError):
    """A bundle has bytes after its end."""


class CorruptBundleError(BundleError):
    """A bundle's bytes are not those that were signed."""


class SchemaError(BundleError):
    """A bundle's header or manifest does not follow its schema."""


class NewerSchemaError(SchemaError):
    """A bundle's header or manifest is of a newer schema than this armlet knows."""


class MissingMemberError(SchemaError):
    """A bundle's manifest names a member that the bundle does not hold."""


class ExtraMemberError(SchemaError):
    """A bundle holds a member that its manifest does not name."""


class SignatureError(BundleError):
    """A bundle's signature is not valid."""


class UntrustedKeyError(SignatureError):
    """A bundle is signed by a key that is not trusted here."""


class AdmissionError(BundleError):
    """A bundle is whole and signed, but not for this board, not any more, or not without its owner's permission."""


class EnrolmentError(ArmletError):
    """A class cannot be enrolled, or the file of enrolled classes cannot be used."""


class KeyFileError(ArmletError):
    """A key file cannot be read, or must not be overwritten."""


class EngineError(ArmletError):
    """An engine cannot load or run a program."""


class ExportError(ArmletError):
    """A program could not be made, or was made and failed its proof."""


class DeployError(ArmletError):
    """A bundle could not be deployed; the target keeps what it had."""


class ServiceError(ArmletError):
    """The systemd unit of a live run cannot be made, or systemd refuses it."""


class WearableError(ArmletError):
    """A wearable, a Bluetooth adapter or a packet profile cannot be used as asked."""


class PacketError(WearableError):
    """Bytes from a wearable do not follow the packet layout of its profile."""


class RepeatedPacketError(PacketError):
    """Bytes from a wearable that came before."""
