"""Which rows train, with what weight. Pure: arrays in, arrays out.

Built-in selections: `where` (an expression over columns), `keys` (keep or drop by a list of keys),
`split` (a named share that never moves).
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
