"""Which rows belong together, and batches made of that. Pure: arrays in, arrays out.

`kmeans`, `balanced` and `ppp` find clusters, the last one their number as well; `batches` makes
micro-batches within, across or aligned to them, `ngame` such that carry hard negatives;
`prototypes` and `near_duplicates` select rows within clusters.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
