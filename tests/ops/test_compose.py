"""Compose and images: confined, started in order, and made of flags and files that exist."""

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from ops.rule_files import ROOT
from processes import ServerProcess, plain_environment

from groupreplay_cli import COMMANDS, setting_names

DOCKER = ROOT / "services/docker"
IMAGES = sorted(DOCKER.glob("*.Dockerfile"))


def stack(name: str = "docker-compose.yml") -> dict[str, Any]:
    """Return a compose file."""
    loaded: dict[str, Any] = yaml.safe_load((ROOT / name).read_text())
    return loaded


def test_every_container_may_do_as_little_as_possible() -> None:
    """Read-only, without capabilities, started again when it ends; vLLM's image is not ours, and wants more."""
    for name, service in stack()["services"].items():
        if name != "vllm":
            assert service["read_only"] is True, name
            assert service["cap_drop"] == ["ALL"], name
            assert service["security_opt"] == ["no-new-privileges:true"], name
        assert service["restart"] in {"unless-stopped", "on-failure"} or name == "secrets"


def test_ports_are_for_this_machine_only() -> None:
    """What is not meant for the network is not reachable from it."""
    published = [port for service in stack()["services"].values() for port in service.get("ports", ())]
    assert len(published) == 4
    assert all(port.startswith("127.0.0.1:") for port in published)


def test_containers_wait_for_what_they_need_to_be_healthy() -> None:
    """Passwords, then Redis, then the service, then those who use it."""
    services = stack()["services"]
    needs = {name: set(service.get("depends_on", ())) for name, service in services.items()}
    assert needs["redis"] == {"secrets"}
    assert needs["server"] == {"redis"}
    assert needs["generator"] == needs["trainer"] == {"server"}
    for service in services.values():
        for condition in service.get("depends_on", {}).values():
            assert condition["condition"] in {"service_healthy", "service_completed_successfully"}


def test_containers_are_started_with_flags_that_exist() -> None:
    """And with tokens on."""
    started = [service["command"] for service in stack()["services"].values() if service.get("command")]
    commands = {command[0]: command[1:] for command in started}
    for name in ("serve", "generate", "train"):
        known = {f"--{setting.replace('_', '-')}" for setting in setting_names(COMMANDS[name].settings)}
        assert {flag.partition("=")[0].replace("--no-", "--") for flag in commands[name]} <= known
    assert any(flag.startswith("--admin-token-file=") for flag in commands["serve"])


def test_traces_are_asked_for_by_variables_that_exist() -> None:
    """An unknown one would end the process; all three get the same of OpenTelemetry."""
    services = stack("docker-compose.tracing.yml")["services"]
    for name, command in {"server": "serve", "generator": "generate", "trainer": "train"}.items():
        own = {variable for variable in services[name]["environment"] if variable.startswith("GROUPREPLAY_")}
        assert own == {f"GROUPREPLAY_{command.upper()}_TRACE_{it}" for it in ("ENDPOINT", "RATIO")}
        assert {"trace.endpoint", "trace.ratio"} <= set(setting_names(COMMANDS[command].settings))
        assert services[name]["volumes"] == services["server"]["volumes"]


def test_the_example_of_an_environment_has_every_setting_with_its_default() -> None:
    """Nobody has to read the compose file to know what can be set."""
    texts = "".join(path.read_text() for path in sorted(ROOT.glob("docker-compose*.yml")))
    used = dict(re.findall(r"\$\{(\w+):[-?+]([^}]*)\}", texts))
    example = dict(re.findall(r"^#? *(\w+)=(.*)$", (ROOT / ".env.example").read_text(), re.MULTILINE))
    images = {name for name in used if name.endswith("_TAG")} | {"PROMETHEUS_RETENTION"}
    assert set(used) - images <= set(example)
    active = dict(re.findall(r"^(\w+)=(.*)$", (ROOT / ".env.example").read_text(), re.MULTILINE))
    assert {name: used[name] for name in active} == active


def test_what_is_mounted_is_there() -> None:
    """Rules and dashboard are those of the chart."""
    for service in stack()["services"].values():
        for volume in service.get("volumes", ()):
            source = volume.partition(":")[0]
            assert not source.startswith(".") or (ROOT / source).exists(), source


@pytest.mark.parametrize("image", IMAGES, ids=lambda path: path.stem)
def test_an_image_is_built_in_stages_and_runs_as_nobody_in_particular(image: Path) -> None:
    """What builds it stays behind; it has labels, a health check, and what it copies is let in by .dockerignore."""
    text = image.read_text()
    assert text.count("\nFROM ") == 2
    final = text.rpartition("\nFROM ")[2]
    assert "USER 10001:10001" in final
    assert "HEALTHCHECK" in final
    assert "pip uninstall" in final
    for label in ("title", "description", "version", "revision", "licenses", "base.name"):
        assert f"org.opencontainers.image.{label}=" in final
    let_in = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    for copied in re.findall(r"^COPY (?!--from)(.+) \S+$", text, re.MULTILINE):
        for source in copied.split():
            assert (ROOT / source).exists(), source
            assert source in let_in, source


@pytest.mark.ops
def test_hadolint_has_nothing_to_say() -> None:
    """By its default rules, the mildest included."""
    hadolint = shutil.which("hadolint", path=str(Path(sys.executable).parent))
    assert hadolint, "hadolint is not installed: make lint-images"
    command = [hadolint, "--failure-threshold", "style", *map(str, IMAGES)]
    said = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (said.returncode, said.stdout) == (0, "")


def test_passwords_are_made_once(tmp_path: Path) -> None:
    """A restart of the stack changes none, and all containers may read them."""
    seen = []
    for _ in range(2):
        subprocess.run(["sh", DOCKER / "make_secrets.sh", tmp_path], check=True, stdout=subprocess.DEVNULL)
        seen.append({path.name: path.read_text() for path in tmp_path.iterdir()})
    made = seen[0]
    assert made == seen[1]
    assert made.keys() == {"admin-token", "redis-password"}
    assert all(len(secret) == 64 for secret in made.values())
    assert all(path.stat().st_mode & 0o777 == 0o444 for path in tmp_path.iterdir())


def test_the_health_check_of_images_tells_ready_from_not(server_process: ServerProcess) -> None:
    """0 while the service is ready, 1 with a reason when nobody answers."""
    check = [sys.executable, str(DOCKER / "healthcheck.py"), f"http://{server_process.http_address}/readyz"]
    environment = plain_environment()
    assert subprocess.run(check, env=environment, check=False).returncode == 0
    server_process.terminate()
    gone = subprocess.run(check, env=environment, capture_output=True, text=True, check=False)
    assert gone.returncode == 1
    assert "readyz" in gone.stderr
