"""Verify a bundle and read its certificate.

Usage: ``python certificate.py model.armlet [signing.key.pub]``. Prints who signed it, and the measured quality of each
subset of the sensors on each engine. Without a key the bundle must be signed by one that this computer trusts.
"""

import sys
from pathlib import Path

from armlet_runtime.bundle import decode_certificate, open_bundle, trusted_keys


def main(path: str, *keys: str) -> None:
    """Print the certificate."""
    bundle = open_bundle(Path(path), trusted_keys([Path(key) for key in keys]))
    certificate = decode_certificate(bundle.read(bundle.manifest.certificate))
    print(f"{bundle.manifest.name} {bundle.manifest.version}, signed by {', '.join(bundle.signers)}")
    print(f"{certificate.windows} windows of {len(certificate.people)} people")
    for row in certificate.rows:
        print(f"{row.subset} on {row.engine}: macro-F1 {row.macro_f1:.3f}, agrees with PyTorch {row.agreement:.1%}")


if __name__ == "__main__":
    main(*sys.argv[1:])
