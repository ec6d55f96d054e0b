"""How rows reach the accelerator.

A newcomer's way in: `cpu` (rows of Arrow chunks, copied into one contiguous batch) and `transfer`
(a host batch to a device; which GPU path this machine offers).
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
