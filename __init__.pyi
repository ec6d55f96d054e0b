from . import clustering as clustering
from . import coresets as coresets
from . import dataplane as dataplane
from . import gpu_access as gpu_access
from . import jobs as jobs
from . import samplers as samplers

__version__: str
