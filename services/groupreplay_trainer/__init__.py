"""The trainer service: batches in, decoupled policy updates, weights out.

`loss`, `advantages`, `collate` and `diagnostics` stand alone, for those who have a trainer of their own. Nothing is
imported here, because most of it needs torch.
"""
