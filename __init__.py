"""Batchloom: know exactly which rows your model sees, before and after you train.

A job scans an Arrow dataset and decides which rows train a model, in which mini-batches, in what
order and with what weight. The decision is written as a *batch manifest*; a loader streams it.

The public surface lives in the rooms, which are imported when they are first used:
``batchloom.dataplane``, ``batchloom.coresets``, ``batchloom.clustering``, ``batchloom.gpu_access``,
``batchloom.samplers`` and ``batchloom.jobs``.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

__version__ = "0.1.0"
