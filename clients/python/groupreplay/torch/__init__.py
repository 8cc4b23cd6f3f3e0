"""Batches for trainers built on PyTorch. `pip install 'groupreplay[torch]'`; nothing else in the SDK needs torch.

`advantages` and `collate` stand alone. Nothing is imported here, so that whoever needs one part loads no other.
"""
