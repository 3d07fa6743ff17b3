"""The certificate: what was measured on the programs of a bundle themselves, in a process without torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from armlet_runtime.bundle import Certificate, CertificateRow, ProgramRow

from .calibration import Calibration
from .gate import INTERVAL, GateRow

_FIELDS = CertificateRow.__struct_fields__


def make_certificate(
    data: str,
    people: Sequence[str],
    windows: int,
    rows: Sequence[GateRow],
    programs: Sequence[ProgramRow],
    versions: Mapping[str, str],
    calibrations: Mapping[str, Calibration],
    calibration: str,
) -> Certificate:
    """The certificate of a gate's rows.

    Args:
        data: Data set and split, such as ``hapt validation``.
        people: Who the windows are of.
        windows: How many there are.
        rows: From :func:`armlet_export.proof.gate.compare`, of all engines.
        programs: From :func:`armlet_export.proof.gate.program_rows`, of all engines.
        versions: What made and ran the programs.
        calibrations: Engine to what :func:`armlet_export.proof.calibration.measure` found.
        calibration: How.
    """
    return Certificate(
        data=data,
        people=tuple(people),
        windows=windows,
        rows=tuple(
            msgspec.convert(
                {name: value for name, value in msgspec.structs.asdict(row).items() if name in _FIELDS}
                | calibrations[row.engine].of(row.subset),
                CertificateRow,
            )
            for row in rows
        ),
        interval=INTERVAL,
        programs=tuple(programs),
        versions=dict(versions),
        calibration=calibration,
    )
