"""Mini-batches of graphs, for PyTorch Geometric.

A newcomer's way in: `csc` (the graph), `sampling` (what a batch is), `sampler` (the same for PyG),
`keys` (what draws depend on), `kernels` (how they are made).
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
