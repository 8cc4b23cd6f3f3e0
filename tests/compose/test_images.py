"""The images as they were built: small, with nothing that could change them, and run by nobody in particular."""

import pytest
from compose.docker import IMAGES, VERSION, docker, inspect
from processes import wait_until

pytestmark = [pytest.mark.compose, pytest.mark.timeout(300)]

SERVER_MAX_BYTES = 200 * 10**6
"""Of the server's image, beyond the Python that it is built on."""
CONFINED = ("--read-only", "--tmpfs", "/tmp", "--cap-drop", "ALL", "--security-opt", "no-new-privileges:true")
TOOLS = ("pip", "gcc", "cc", "make", "git", "curl", "wget")


PROGRAMS = {
    "server": "groupreplay_cli, groupreplay_server.app",
    "generator": "groupreplay_generator.generator, groupreplay_generator.engines.torch_engine, httpx",
    "trainer": "groupreplay_trainer.trainer, transformers, tensorboardX",
}
SIGNAL = """
import os, pathlib, signal
for name in pathlib.Path("/proc").glob("[0-9]*/comm"):
    if name.read_text().strip() in {"redis-server", "valkey-server"}:
        os.kill(int(name.parent.name), signal.SIGNAL)
        print(name.parent.name)
"""


def run(image: str, *words: str, confined: bool = True) -> str:
    """Run a command in a new container, confined as in compose and chart."""
    entrypoint, *arguments = words
    options = (*(CONFINED if confined else ()), "--network", "none", "--entrypoint", entrypoint)
    return docker("run", "--rm", *options, f"groupreplay/{image}:{VERSION}", *arguments)


def test_the_image_of_the_server_is_small() -> None:
    """Under 200 MB unpacked, beyond its base."""
    [image] = inspect(f"groupreplay/server:{VERSION}")
    [base] = inspect(image["Config"]["Labels"]["org.opencontainers.image.base.name"].removeprefix("docker.io/library/"))
    beyond = image["Size"] - base["Size"]
    print(f"{beyond / 10**6:.0f} MB beyond the base")
    assert 0 < beyond < SERVER_MAX_BYTES


@pytest.mark.parametrize("image", IMAGES)
def test_an_image_says_what_it_is(image: str) -> None:
    """By the labels that registries show; it has a health check, and a user that is not root."""
    [found] = inspect(f"groupreplay/{image}:{VERSION}")
    labels = found["Config"]["Labels"]
    assert labels["org.opencontainers.image.title"] == f"groupreplay {image}"
    assert labels["org.opencontainers.image.version"] == VERSION
    assert labels["org.opencontainers.image.licenses"] == "Apache-2.0"
    assert len(labels["org.opencontainers.image.revision"]) == 40
    assert found["Config"]["User"] == "10001:10001"
    assert found["Config"]["Healthcheck"]["Test"][0] == "CMD"


@pytest.mark.parametrize("image", IMAGES)
def test_an_image_has_no_build_tools_and_nothing_that_its_user_may_change(image: str) -> None:
    """No pip, no compiler, no sources; none of the program's files belongs to who runs it."""
    assert run(image, "id", "-u").strip() == "10001"
    found = run(image, "sh", "-c", f"command -v {' '.join(TOOLS)} || true; python -m pip --version 2>&1 || true")
    assert found.strip().endswith("No module named pip")
    assert run(image, "find", "/opt", "/usr/local", "-writable", "-not", "-type", "l", confined=False) == ""
    assert run(image, "sh", "-c", "ls -d /source /root/.cache 2>/dev/null || true") == ""


@pytest.mark.parametrize(("image", "modules"), PROGRAMS.items())
def test_an_image_has_what_it_runs_as_bytecode(image: str, modules: str) -> None:
    """All imports are there; and since nothing can be written, what is not compiled is compiled at every start."""
    program = f"""if True:
        import pathlib, ssl, sys, {modules}
        compiled = [vars(it).get("__cached__") for it in list(sys.modules.values())]
        print(len(compiled), *[it for it in compiled if it and not pathlib.Path(it).exists()])
    """
    count, *missing = run(image, "python", "-c", program).split()
    assert int(count) > 400
    assert missing == []


def test_the_health_check_of_a_container_follows_the_service() -> None:
    """Healthy once the service is ready, on an embedded Redis here; unhealthy while that hangs, and healthy again."""
    words = ("--network", "none", "--health-interval", "1s", "--health-retries", "1", "--tmpfs", "/data:uid=10001")
    name = f"groupreplay/server:{VERSION}"
    container = docker("run", "--detach", *CONFINED, *words, name, "serve", "--data-dir", "/data").strip()

    def wait_for(status: str) -> None:
        wait_until(lambda: inspect(container)[0]["State"]["Health"]["Status"] == status, status, 60)

    try:
        wait_for("healthy")
        for number, status in (("SIGSTOP", "unhealthy"), ("SIGCONT", "healthy")):
            assert docker("exec", container, "python", "-c", SIGNAL.replace("SIGNAL", number)).strip()
            wait_for(status)
    finally:
        docker("rm", "--force", "--volumes", container)
