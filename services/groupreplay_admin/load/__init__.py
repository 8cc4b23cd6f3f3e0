"""Load on a service: groups of known shapes, and client processes that push and pull them."""
