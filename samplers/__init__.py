"""What a training loop holds.

A newcomer's way in: `loader` (batches with their data), `batch` (what a batch carries),
`batch_sampler` (index lists for a plain DataLoader), `ranks` (who takes which rows), `state` (what
is saved to resume) and `losses`.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
