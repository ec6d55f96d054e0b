"""Which rows belong together, and batches made of that. Pure: arrays in, arrays out.

`kmeans` finds clusters; `batches` makes micro-batches within, across or aligned to them.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
