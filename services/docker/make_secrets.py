"""Make the passwords of a compose stack, once: random, in a volume that only its containers mount."""

import secrets
import sys
from pathlib import Path

NAMES = ("admin-token", "redis-password")

folder = Path(sys.argv[1])
for name in NAMES:
    path = folder / name
    if not path.exists():
        unfinished = path.with_suffix(".new")
        unfinished.write_text(secrets.token_hex(32))
        unfinished.chmod(0o444)  # Redis runs as another user
        unfinished.replace(path)
        print(f"made {path}")
