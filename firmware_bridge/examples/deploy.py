"""Deploy a bundle into a slot: a folder with two places, of which one is in use.

Usage: ``python deploy.py model.armlet FOLDER [signing.key.pub]``. Prints which place is in use afterwards. The bundle
must give its golden outputs first; whatever fails or loses power meanwhile, the slot has a whole bundle.
"""

import sys
from pathlib import Path

from armlet_runtime.install import current_bundle, deploy_to_slot


def main(bundle: str, folder: str, *keys: str) -> None:
    """Deploy, and show what the slot holds."""
    deployment = deploy_to_slot(Path(bundle), Path(folder), [Path(key) for key in keys])
    print(f"{deployment.name} {deployment.version} is in use in place {deployment.place}")
    print(f"its file: {current_bundle(Path(folder))}")


if __name__ == "__main__":
    main(*sys.argv[1:])
