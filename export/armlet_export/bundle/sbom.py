"""The software bill of materials of a bundle: CycloneDX 1.5 JSON.

It lists the programs of the bundle with their hashes, and the packages that they were made with, with versions and
licences as the packages themselves declare them.
"""

from __future__ import annotations

import hashlib
import json
import platform
import uuid
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, metadata
from typing import Any

MAKERS: dict[str, tuple[str, ...]] = {
    "litert": ("litert-torch", "ai-edge-quantizer", "ai-edge-litert"),
    "executorch": ("executorch",),
    "onnx": ("onnx", "onnxscript", "onnx-ir"),
}
"""Engine to the packages that its programs are made with, besides :data:`COMMON`."""

COMMON = ("armlet", "torch", "torchao", "numpy")


def made_with(engines: Mapping[str, object]) -> dict[str, str]:
    """Package to version of all that the programs of these engines are made with; also ``python``."""
    packages = [*COMMON, *(package for engine in engines for package in MAKERS[engine])]
    return {"python": platform.python_version()} | {package: str(metadata(package)["Version"]) for package in packages}


def cyclonedx(
    name: str, version: str, created: str, packages: Mapping[str, str], programs: Mapping[str, bytes]
) -> bytes:
    """The bill as CycloneDX 1.5 JSON; the same arguments give the same bytes.

    Args:
        name: Name of the model.
        version: Its version.
        created: UTC, ISO 8601.
        packages: From :func:`made_with`.
        programs: Member name to program.
    """
    hashes = {member: hashlib.sha256(data).hexdigest() for member, data in programs.items()}
    digest = hashlib.sha256(json.dumps([name, version, created, hashes, dict(packages)]).encode()).hexdigest()
    bill = {
        "$schema": "http://cyclonedx.org/schema/bom-1.5.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        # A hash of the contents in the form of a random UUID, as the format asks for.
        "serialNumber": f"urn:uuid:{uuid.UUID(hex=digest[:32], version=4)}",
        "version": 1,
        "metadata": {
            "timestamp": created,
            "component": {"type": "machine-learning-model", "bom-ref": "model", "name": name, "version": version},
        },
        "components": [
            *(
                {
                    "type": "file",
                    "bom-ref": member,
                    "name": member,
                    "hashes": [{"alg": "SHA-256", "content": content}],
                }
                for member, content in hashes.items()
            ),
            *(_package(package, number) for package, number in packages.items()),
        ],
        "dependencies": [
            {"ref": "model", "dependsOn": list(hashes)},
            *({"ref": member, "dependsOn": [_purl(item, packages[item]) for item in packages]} for member in hashes),
        ],
    }
    return json.dumps(bill, indent=1).encode() + b"\n"


def _purl(package: str, version: str) -> str:
    return f"pkg:generic/python@{version}" if package == "python" else f"pkg:pypi/{package}@{version}"


def _package(package: str, version: str) -> dict[str, Any]:
    component: dict[str, Any] = {
        "type": "library" if package != "python" else "platform",
        "bom-ref": _purl(package, version),
        "name": package,
        "version": version,
        "purl": _purl(package, version),
    }
    licences = [{"license": {"id": "PSF-2.0"}}] if package == "python" else _licences(package)
    return component | ({"licenses": licences} if licences else {})


def _licences(package: str) -> list[dict[str, Any]]:
    try:
        declared = metadata(package)
    except PackageNotFoundError:
        return []
    if "License-Expression" in declared:
        return [{"expression": declared["License-Expression"]}]
    # Older metadata has names for people, and sometimes the whole text in "License".
    names = [item.split(" :: ")[-1] for item in declared.get_all("Classifier") or [] if item.startswith("License ::")]
    text = declared["License"].strip() if "License" in declared else ""
    if text and "\n" not in text and len(text) < 80:
        names = [text]
    if not names and "License-File" in declared:
        names = [f"as in {declared['License-File']} of the package"]
    return [{"license": {"name": name}} for name in names]
