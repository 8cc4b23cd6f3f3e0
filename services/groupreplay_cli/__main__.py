"""`python -m groupreplay_cli`."""

from groupreplay_cli import main

main()
