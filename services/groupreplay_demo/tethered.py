"""`python -m groupreplay_demo.tethered COMMAND ...`: a groupreplay command that ends when its standard input does.

The demo holds the other end, and the system lets go of it however the demo ends, so that not even a demo that is killed
(by the kernel for want of memory, say) leaves processes which go on computing for nobody.
"""

import os
import signal
import sys
import threading
import time

from groupreplay_cli import main

_PATIENCE_S = 30.0


def _end_with_input() -> None:
    while os.read(sys.stdin.fileno(), 4096):
        pass
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(_PATIENCE_S)
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    threading.Thread(target=_end_with_input, name="tether", daemon=True).start()
    main()
