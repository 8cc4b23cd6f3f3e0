"""What the SDK is made of."""

import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import groupreplay

ROOT = Path(__file__).resolve().parents[2]
FOREIGN = [
    "opentelemetry",
    "redis",
    "fastapi",
    "torch",
    "vllm",
    "cyclopts",
    "prometheus_client",
    "pydantic",
    "groupreplay_server",
]


def test_the_sdk_loads_nothing_but_its_three_dependencies() -> None:
    """`import groupreplay` is cheap, and works where only numpy, grpcio and protobuf are."""
    program = f"import sys, groupreplay; print([name for name in {FOREIGN} if name in sys.modules])"
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"


def test_no_module_of_the_sdk_but_its_torch_part_loads_torch() -> None:
    """Whoever generates, or looks at tables, needs no torch, whatever they import."""
    modules = [
        module.name
        for module in pkgutil.iter_modules(groupreplay.__path__, "groupreplay.")
        if module.name != "groupreplay.torch"
    ]
    imports = "".join(f"import {module}\n" for module in modules)
    program = f"import sys\n{imports}print('torch' in sys.modules)"
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "groupreplay.shares" in modules
    assert ran.stdout.strip() == "False"


@pytest.mark.parametrize("script", ["generate_sync_client.py", "generate_protos.py"])
def test_generated_files_are_what_their_sources_give(script: str) -> None:
    """Nobody edited a generated file, or forgot to generate it."""
    ran = subprocess.run(
        [sys.executable, ROOT / "scripts" / script, "--check"], capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr


def test_both_clients_have_the_same_methods() -> None:
    """The contract tests call them by the same names."""
    from groupreplay import AsyncClient, Client  # noqa: PLC0415  beside its use

    def public(cls: type) -> set[str]:
        return {name for name in vars(cls) if not name.startswith("_")}

    assert public(AsyncClient) == public(Client)
