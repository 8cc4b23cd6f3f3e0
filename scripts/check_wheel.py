"""Build the wheel and use it in clean environments: bare it is the SDK alone, with [server] it serves."""

import json
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BARE = {"groupreplay", "grpcio", "numpy", "protobuf", "typing-extensions", "pip", "setuptools"}
ROUND_TRIP = """
import json, subprocess, sys, time, urllib.request
from pathlib import Path
from groupreplay import Client, Rollout, RolloutGroup
folder = Path(sys.argv[1])
ready = folder / "ready.json"
service = subprocess.Popen([str(Path(sys.executable).parent / "groupreplay"), "serve", "--grpc-listen", "127.0.0.1:0",
    "--http-listen", "127.0.0.1:0", "--data-dir", str(folder / "data"), "--ready-file", str(ready)])
while not ready.exists():
    assert service.poll() is None, "groupreplay serve ended"
    time.sleep(0.05)
page = f"http://{json.loads(ready.read_text())['http_address']}/ui/main.js"
assert b"import" in urllib.request.urlopen(page).read()
with Client(json.loads(ready.read_text())["grpc_address"]) as client:
    client.create_table(run="r", table="t")
    rollouts = [Rollout(token_ids=[1], behaviour_logprobs=[-0.5], reward=reward) for reward in (0.0, 1.0)]
    group = RolloutGroup.from_rollouts(rollouts, group_id="g", prompt_id="p", prompt_token_ids=[1], policy_version=0)
    client.insert(group, run="r", table="t")
    batch = client.next_batch(run="r", table="t", batch_size=1)
    assert batch.groups[0].group.group_id == "g"
service.terminate()
assert service.wait() == 0
"""


def run(*command: str | Path) -> str:
    """Run a command; return what it printed."""
    return subprocess.run([str(part) for part in command], check=True, capture_output=True, text=True).stdout


def main() -> None:
    """Check."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        run(sys.executable, "-m", "build", "--wheel", "--installer", "pip", "--outdir", folder, ROOT)
        wheel = next(folder.glob("*.whl"))
        print(f"{wheel.name}: {wheel.stat().st_size / 2**20:.1f} MiB")
        venv.create(folder / "venv", with_pip=True)
        python = folder / "venv/bin/python"
        pip: list[str | Path] = [python, "-m", "pip", "--disable-pip-version-check"]
        constraints: list[str | Path] = ["--constraint", ROOT / "constraints.txt"]
        run(*pip, "install", "--quiet", *constraints, wheel)
        installed = {
            entry["name"].lower().replace("_", "-") for entry in json.loads(run(*pip, "list", "--format=json"))
        }
        if extra := installed - BARE:
            sys.exit(f"the bare SDK also installs {sorted(extra)}")
        run(python, "-c", "import groupreplay; groupreplay.Client('127.0.0.1:1')")
        run(*pip, "install", "--quiet", *constraints, f"{wheel}[server]")
        run(python, "-c", ROUND_TRIP, folder)
    print("the wheel works: bare = SDK alone, [server] = a service that serves")


if __name__ == "__main__":
    main()
