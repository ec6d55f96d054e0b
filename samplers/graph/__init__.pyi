from .csc import CSCGraph as CSCGraph
from .hetero import HeteroNeighborSampler as HeteroNeighborSampler
from .keys import PlannedBatches as PlannedBatches
from .relations import Sample as Sample
from .sampler import NeighborSampler as NeighborSampler
from .sampling import sample_neighbors as sample_neighbors
