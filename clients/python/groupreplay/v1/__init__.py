"""Generated from protos/groupreplay/v1 by `make protos`."""
