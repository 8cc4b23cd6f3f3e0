"""The claims of the POPO paper, measured on the tiny model through the real service: `make experiment`."""
