"""The certificate: what was measured on the programs of a bundle themselves, in a process without torch."""

from __future__ import annotations

from collections.abc import Sequence

from armlet_runtime.manifest import Certificate, CertificateRow

from .gate import GateRow


def certificate(data: str, people: Sequence[str], windows: int, rows: Sequence[GateRow]) -> Certificate:
    """The certificate of a gate's rows.

    Args:
        data: Data set and split, such as ``hapt validation``.
        people: Who the windows are of.
        windows: How many there are.
        rows: From :func:`armlet_export.gate.compare`, of all engines.
    """
    return Certificate(
        data=data,
        people=tuple(people),
        windows=windows,
        rows=tuple(
            CertificateRow(
                subset=row.subset,
                engine=row.engine,
                macro_f1=row.macro_f1,
                macro_f1_pytorch=row.macro_f1_pytorch,
                max_distance=row.max_distance,
                mean_distance=row.mean_distance,
                agreement=row.agreement,
            )
            for row in rows
        ),
    )
