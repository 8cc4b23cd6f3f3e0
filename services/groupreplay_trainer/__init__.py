"""The trainer service: batches in, decoupled policy updates, weights out.

`loss` and `diagnostics` stand alone, for those who have a trainer of their own; `groupreplay.torch` has their batches.
Nothing is imported here, because most of it needs torch.
"""
