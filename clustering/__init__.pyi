from .balanced import BalancedKMeans as BalancedKMeans
from .batches import across as across
from .batches import aligned as aligned
from .batches import within as within
from .clusters import Clusters as Clusters
from .kmeans import KMeans as KMeans
from .ngame import NGAME as NGAME
