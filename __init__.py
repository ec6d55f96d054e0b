"""Batchloom: know exactly which rows your model sees, before and after you train.

A job scans an Arrow dataset and decides which rows train a model, in which mini-batches, in what
order and with what weight. The decision is written as a *batch manifest*; a loader streams it.

The public surface lives in the rooms: ``batchloom.dataplane``, ``batchloom.coresets``,
``batchloom.clustering``, ``batchloom.gpu_access``, ``batchloom.samplers`` and ``batchloom.jobs``.
Nothing heavy is imported before it is asked for.
"""

__version__ = "0.1.0"
