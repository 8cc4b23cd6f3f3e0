"""Write the versions of everything installed in this environment to constraints.txt."""

import re
import subprocess
import sys
from pathlib import Path

TARGET = Path(__file__).resolve().parent.parent / "constraints.txt"
HEADER = "# Versions that CI tests with; `make constraints` writes this file. The wheel itself asks for ranges.\n"


def main() -> None:
    """Pin."""
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "freeze", "--exclude-editable"]
    frozen = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    # A local version such as +cpu names one index's build of torch; anybody's build will do.
    pins = sorted({re.sub(r"\+\w+$", "", line) for line in frozen if "==" in line}, key=str.lower)
    TARGET.write_text(HEADER + "\n".join(pins) + "\n")


if __name__ == "__main__":
    main()
