"""Run luacheck, where there is one, over every script as Redis gets it: the prelude, then the operation."""

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from groupreplay_server.store.scripts import load_script, script_names

OPTIONS = [
    "--no-color",
    "--std",
    "lua51",
    "--globals",
    "redis",
    "cmsgpack",
    "cjson",
    "bit",
    "KEYS",
    "ARGV",
    "--max-line-length",
    "120",
]
# Every script is given all keys and functions of the prelude, and uses some.
UNUSED_PRELUDE = ["--ignore", "211", "--no-unused-args"]


def main() -> int:
    """Check."""
    luacheck = shutil.which("luacheck")
    if luacheck is None:
        print("luacheck is not installed: the Lua scripts were not checked (apt install lua-check)")
        return 0
    with tempfile.TemporaryDirectory() as folder:
        paths = []
        for name in script_names():
            path = Path(folder) / f"{name}.lua"
            path.write_text(load_script(name).source)
            paths.append(str(path))
        return subprocess.run([luacheck, *OPTIONS, *UNUSED_PRELUDE, *paths], check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
