"""The summary of a run and the figures of its certificate, as text."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..bundle import CertificateRow
    from ..live import Summary


def certified_text(row: CertificateRow | None, data: str) -> str:
    """The certified figure of a subset with the data that it was measured on; empty if the certificate has no row.

    The data are named because the figure does not hold for sensors that are worn elsewhere.
    """
    if row is None:
        return ""
    interval = ""
    if row.macro_f1_low is not None and row.macro_f1_high is not None:
        interval = f" [{row.macro_f1_low:.2f}, {row.macro_f1_high:.2f}]"
    return f"certified macro-F1 {row.macro_f1:.2f}{interval}{f' on {data}' if data else ''}"


def summary_lines(summary: Summary) -> list[str]:
    """The summary in a few lines."""
    subsets = ", ".join(f"{name} {count}" for name, count in summary.subsets.items()) or "none"
    lines = [
        f"{summary.decisions} decisions, {summary.missed} missed ({subsets})",
        f"engine {summary.engine} {summary.engine_version}: {summary.engine_detail}",
    ]
    for name, row in summary.certified.items():
        lines.append(f"on {name}: {certified_text(row, summary.certified_on)}")
    if summary.certified and summary.certified_on:
        lines.append(f"certified figures hold for sensors worn as in {summary.certified_on}")
    if summary.undecided:
        lines.append("no decision: " + ", ".join(f"{reason} {count}" for reason, count in summary.undecided.items()))
    if summary.latency_s is not None and summary.compute_s is not None:
        latency, compute = summary.latency_s, summary.compute_s
        lines.append(
            f"latency p50 {latency.p50 * 1e3:.1f} ms, p99 {latency.p99 * 1e3:.1f} ms; "
            f"computing p50 {compute.p50 * 1e3:.2f} ms, p99 {compute.p99 * 1e3:.2f} ms"
        )
    memory = (
        f"memory {summary.memory['resident_bytes'] / 2**20:.0f} MiB, peak {summary.memory['peak_bytes'] / 2**20:.0f}"
    )
    if summary.cold_start_s is not None:
        memory += f"; first decision {summary.cold_start_s:.1f} s after the start"
    lines.append(memory)
    for name, wearable in summary.wearables.items():
        for profile, counts in wearable.profiles.items():
            numbers = ", ".join(f"{event.replace('_', ' ')} {count}" for event, count in counts.items() if count)
            lines.append(f"{name} ({profile}): {numbers}")
        if not wearable.profiles:
            lines.append(f"{name}: {wearable.state} {wearable.problem}".rstrip())
    lines += [f"{signal}: {reason}" for signal, reason in summary.problems.items()]
    for sink in summary.sinks:
        lost = f", {sink.lost} lost" if sink.lost else ""
        lines.append(f"{sink.sink}: {sink.sent} sent{lost}" + (f" ({sink.problem})" if sink.problem else ""))
    if summary.dropped_packets:
        lines.append(f"{summary.dropped_packets} packets were lost because this process was too busy")
    return lines
