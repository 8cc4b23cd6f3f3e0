"""Generate clients/python/groupreplay/v1 from protos/; --check fails when the committed files differ."""

import argparse
import filecmp
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PROTOS = ROOT / "protos"
PACKAGE = Path("groupreplay/v1")
TARGET = ROOT / "clients/python" / PACKAGE


def generate(out: Path) -> None:
    """Write the generated modules and their type stubs below out."""
    binaries = Path(sys.executable).parent
    messages = sorted(str(path.relative_to(PROTOS)) for path in PROTOS.rglob("*.proto"))
    services = [name for name in messages if name.endswith("_service.proto")]
    run_protoc(
        f"--python_out={out}",
        f"--plugin=protoc-gen-mypy={binaries / 'protoc-gen-mypy'}",
        f"--mypy_out=quiet:{out}",
        *messages,
    )
    run_protoc(
        f"--grpc_python_out={out}",
        f"--plugin=protoc-gen-mypy_grpc={binaries / 'protoc-gen-mypy_grpc'}",
        f"--mypy_grpc_out=quiet:{out}",
        *services,
    )
    (out / PACKAGE / "__init__.py").write_text('"""Generated from protos/groupreplay/v1 by `make protos`."""\n')


def run_protoc(*arguments: str) -> None:
    """Run the protoc of the installed grpcio-tools."""
    subprocess.run([sys.executable, "-m", "grpc_tools.protoc", f"--proto_path={PROTOS}", *arguments], check=True)


def main() -> int:
    """Generate, or compare with what is committed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 when a file differs")
    args = parser.parse_args()
    if not args.check:
        generate(ROOT / "clients/python")
        return 0
    with tempfile.TemporaryDirectory() as folder:
        generate(Path(folder))
        made = Path(folder) / PACKAGE
        names = {path.name for path in [*made.iterdir(), *TARGET.glob("*.py*")]}
        _, different, missing = filecmp.cmpfiles(made, TARGET, names, shallow=False)
    for name in sorted(different + missing):
        print(f"{(TARGET / name).relative_to(ROOT)} is not what protos/ gives: run `make protos` and commit the result")
    return 1 if different or missing else 0


if __name__ == "__main__":
    sys.exit(main())
