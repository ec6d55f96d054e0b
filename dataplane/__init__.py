"""What a dataset, a row id, a plan and a manifest are, and where they are kept.

A newcomer's way in: `dataset` (files → rows with ids), `snapshot` (the fragment table), `plan`
(batches of rows), `manifest` (the format), `manifest_writer`, `series`, and `random` (orders and
choices that depend on nothing but their key).
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
