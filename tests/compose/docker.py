"""The Docker engine of this machine, by its command line."""

import json
import shutil
import subprocess
from typing import Any

IMAGES = ("server", "generator", "trainer")
VERSION = "0.1.0"


def docker(*words: str, environment: dict[str, str] | None = None, given: str | None = None) -> str:
    """Run a docker command, and return what it writes to standard output."""
    done = subprocess.run(
        ["docker", *words], env=environment, input=given, capture_output=True, text=True, check=False, timeout=600
    )
    assert done.returncode == 0, f"docker {' '.join(words)}: {done.stderr or done.stdout}"
    return done.stdout


def inspect(*names: str) -> list[dict[str, Any]]:
    """Return all that the engine knows about containers or images."""
    found: list[dict[str, Any]] = json.loads(docker("inspect", *names)) if names else []
    return found


def missing() -> str:
    """Return what these tests lack here, or nothing."""
    if not shutil.which("docker"):
        return "no docker here"
    for words, what in (
        (["version"], "no Docker engine answers"),
        (["compose", "version"], "this docker has no Compose plugin"),
        *(
            (["image", "inspect", f"groupreplay/{image}:{VERSION}"], f"no image {image}: make images")
            for image in IMAGES
        ),
    ):
        if subprocess.run(["docker", *words], capture_output=True, check=False).returncode:
            return what
    return ""


def has_image(name: str) -> bool:
    """Whether an image is here."""
    return subprocess.run(["docker", "image", "inspect", name], capture_output=True, check=False).returncode == 0
