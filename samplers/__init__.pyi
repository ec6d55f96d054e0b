from .batch import Batch as Batch
from .batch_sampler import ManifestBatchSampler as ManifestBatchSampler
from .loader import ManifestLoader as ManifestLoader
from .losses import weighted_loss as weighted_loss
from .state import LoaderState as LoaderState
