"""How rows reach the accelerator.

A newcomer's way in: `unified` (a host table whose rows are asked for by id), `backends` (the ways
they go, and the choice among them), `kernels` (what GPU threads do), `cache` (rows that are read
again). `packed_gather` gathers rows of packed tables and mapped files on the CPU (`row_gather`: its
kernel), `cpu` those of Arrow chunks; `transfer` moves a batch to a device.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
