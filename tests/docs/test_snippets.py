"""What the documentation shows must work as it stands there."""

import itertools
import json
import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path
from textwrap import dedent

import pytest
import yaml
from processes import ServerProcess

from groupreplay import Client, Rollout, RolloutGroup, TableConfig
from groupreplay_cli import COMMANDS, setting_names

ROOT = Path(__file__).resolve().parent.parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
ADDRESS = "127.0.0.1:50051"
UNCHECKED = {"git", "cd", "cp", "mv", "pip", "curl", "python3", "docker", "kubectl", "openssl", "redis-cli"}
"""Commands that are not ours; `docker compose` and `helm` are looked at."""
HTTP_ADDRESS = "127.0.0.1:8080"


def blocks(page: Path, language: str) -> Iterator[str]:
    """Yield the code blocks of a page in one language; those in lists are indented."""
    for block in re.findall(rf"^( *```{language}\n.*?)^ *```$", page.read_text(), re.MULTILINE | re.DOTALL):
        yield dedent(block).partition("\n")[2]


def name(page: Path) -> str:
    """Name a page in test ids."""
    return str(page.relative_to(ROOT))


@pytest.mark.parametrize("page", [page for page in PAGES if list(blocks(page, "python"))], ids=name)
def test_python_snippets_run(
    page: Path,
    sync_client: Client,
    server_process: ServerProcess,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The Python blocks of a page run one after the other against a service with groups in it."""
    monkeypatch.chdir(tmp_path)  # they may write files
    sync_client.create_table(run="math", table="train", config=_config_of(page))
    for index in range(40):
        rollouts = [Rollout(token_ids=[1, 2], behaviour_logprobs=[-0.5, -0.1], reward=reward) for reward in (0.0, 1.0)]
        group = RolloutGroup.from_rollouts(
            rollouts, group_id=f"g{index}", prompt_id=f"p{index}", prompt_token_ids=[3], policy_version=0
        )
        sync_client.insert(group, run="math", table="train")
    code = "".join(blocks(page, "python")).replace(ADDRESS, server_process.grpc_address)
    code = code.replace(HTTP_ADDRESS, server_process.http_address)
    exec(compile(code, name(page), "exec"), {"__name__": "snippet"})


@pytest.mark.parametrize("page", [page for page in PAGES if list(blocks(page, "bash"))], ids=name)
def test_shell_snippets_run(page: Path, server_process: ServerProcess, tmp_path: Path) -> None:
    """The bash blocks of a page run one after the other against a service, and none of what they send is refused."""
    for block in blocks(page, "bash"):
        script = "set -euo pipefail\n" + block.replace(HTTP_ADDRESS, server_process.http_address)
        ran = subprocess.run(
            ["bash", "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
        )
        assert ran.returncode == 0, f"{block}\n{ran.stdout}\n{ran.stderr}"
        assert '"refused"' not in ran.stdout, f"{block}\n{ran.stdout}"
        assert ran.stdout or "-o " in block, block


def _config_of(page: Path) -> TableConfig:
    return TableConfig(ahead_groups=0) if "ahead_groups=0" in page.read_text() else TableConfig()


def shell_lines() -> list[tuple[str, str]]:
    """Return (page, line) of every command that the documentation shows."""
    found = []
    for page in PAGES:
        for block in blocks(page, "sh"):
            found += [(name(page), line.strip()) for line in block.splitlines() if line.strip()]
    return found


@pytest.mark.parametrize(("page", "line"), shell_lines())
def test_commands_exist_with_these_flags(page: str, line: str) -> None:
    """Each `groupreplay` command and flag, and each make target, that the documentation shows exists."""
    words = shlex.split(line, comments=True)
    if words[0] == "groupreplay":
        _check_flags(words[1], words[2:])
    elif words[0] == "torchrun":
        command = words.index("groupreplay_cli") + 1
        _check_flags(words[command], words[command + 1 :])
    elif words[0] == "make":
        targets = re.findall(r"^([a-z-]+):.*## ", (ROOT / "Makefile").read_text(), re.MULTILINE)
        assert words[1] in targets, f"{page}: {line}"
        arguments = [word.removeprefix("ARGS=") for word in words[2:] if word.startswith("ARGS=")]
        if words[1] == "demo" and arguments:
            _check_flags("demo", shlex.split(arguments[0]))
    elif words[0] == "helm":
        _check_values([word for flag, word in itertools.pairwise(words) if flag == "--set"])
    elif words[:2] == ["docker", "compose"]:
        _check_services(words[2:])
    else:
        assert words[0] in UNCHECKED, f"{page}: nobody checks {line}"


def _check_values(settings: list[str]) -> None:
    values = (ROOT / "helm/groupreplay/values.schema.json").read_text()
    for setting in settings:
        section = json.loads(values)
        for name in setting.partition("=")[0].split("."):
            assert name in section["properties"], f"the chart has no value {setting}"
            section = section["properties"][name]


def _check_services(words: list[str]) -> None:
    services = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
    scaled = {word.partition("=")[0] for flag, word in itertools.pairwise(words) if flag == "--scale"}
    files = [word for flag, word in itertools.pairwise(words) if flag == "-f"]
    last = {words[-1]} if {"exec", "build", "logs", "--no-deps"} & set(words) and words[-1] in services else set()
    named = {words[words.index("exec") + 1]} if "exec" in words else set()
    assert scaled | last | named <= set(services), words
    assert all((ROOT / file).exists() for file in files), words


def _check_flags(command: str, words: list[str]) -> None:
    known = {f"--{setting.replace('_', '-')}" for setting in setting_names(COMMANDS[command].settings)}
    for word in words:
        if word.startswith("--"):
            assert word.partition("=")[0] in known | {"--help", "--config"}, f"groupreplay {command} has no {word}"


def test_links_lead_somewhere() -> None:
    """Every relative link of the documentation names a file that exists."""
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text()):
            if not target.startswith(("http:", "https:")):
                assert (page.parent / target).exists(), f"{name(page)} links to {target}"


def test_every_counter_is_described() -> None:
    """Each counter that a script can write has a row in the reference."""
    page = (ROOT / "docs/reference/counters.md").read_text()
    for script in (ROOT / "services/groupreplay_server/store/lua").glob("*.lua"):
        text = script.read_text()
        for counter in re.findall(r"count\('(\w+)'", text) + re.findall(r"and '(\w+)' or 'delivered", text):
            assert f"`{counter}`" in page or counter.endswith("_"), f"{script.name}: {counter}"
        for reason in re.findall(r"discard\([^)]*'(\w+)'\)", text):
            assert f"`gone_{reason}`" in page, f"{script.name}: gone_{reason}"
