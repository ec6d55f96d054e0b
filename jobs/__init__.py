"""What an operator runs: jobs on Dask, job files, the command line.

`planning` runs a job; `spec` says what a job file holds; `methods` lists the stages that a plan can
be made of; `engine` is the only place that knows Dask.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
