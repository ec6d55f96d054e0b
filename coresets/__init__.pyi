from .hard_batches import HardBatches as HardBatches
from .infobatch import InfoBatch as InfoBatch
from .keys import match_keys as match_keys
from .random_share import RandomShare as RandomShare
from .seta import SeTa as SeTa
from .split import in_split as in_split
from .split import parse_split as parse_split
from .where import parse_where as parse_where
