"""A plan, and the difference of two, in figures and in pictures: one file that needs no other.

`planned` makes the figures of a plan and `difference` those of two, as plain dictionaries that JSON
holds; `page` makes HTML of either, and of nothing else. What is counted is in `counts`, `classes`,
`losses` and `chi_square`; what the header tells is in `told`.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
