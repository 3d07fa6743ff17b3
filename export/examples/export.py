"""Export a fine-tuned run to a signed bundle.

Usage: ``python export.py RUN model.armlet ENGINE...``; an engine is ``litert``, ``executorch`` or ``onnx``. Trains for
int8, lowers and proves each program, and prints the certificate. Nothing is written unless every proof succeeds.
"""

import sys
from pathlib import Path

from armlet_export.pipeline import export_model, load_trained
from armlet_runtime.bundle import default_signing_key
from armlet_train.engine import run_folder


def main(run: str, out: str, *engines: str) -> None:
    """Export with the key of this computer's user, which is made if it does not exist."""
    run_folder.pick_device("cpu")
    trained = load_trained(run_folder.load_run(Path(run), "finetune"))
    key, _ = default_signing_key()
    report = export_model(trained, engines, key, Path(run) / "export", Path(out))
    print(f"{report.bundle}: {report.bytes} bytes")
    for row in report.certificate.rows:
        print(f"{row.subset} on {row.engine}: macro-F1 {row.macro_f1:.3f}, in PyTorch {row.macro_f1_pytorch:.3f}")


if __name__ == "__main__":
    main(*sys.argv[1:])
