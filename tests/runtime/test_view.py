"""The table of a live run: what comes over the air is shown as it is."""

from __future__ import annotations

from pathlib import Path

import pytest

from armlet_runtime.ble import Link
from armlet_runtime.live import LiveCore
from armlet_runtime.model import BundleModel
from armlet_runtime.prove import Draft
from armlet_runtime.view import TableView


def test_brackets_in_names_and_problems_are_text(small_draft: Path, capsys: pytest.CaptureFixture[str]) -> None:
    draft = Draft(small_draft)
    view = TableView(LiveCore(BundleModel(draft.manifest, draft.read, "litert")))
    link = Link("[/bold]", "missing", "[org.bluez.Error.Failed] gone")
    view.links({link.name: link})
    view._live.transient = False
    view.close()
    shown = capsys.readouterr().out
    assert "[/bold]" in shown
    assert "[org.bluez.Error.Failed] gone" in shown
