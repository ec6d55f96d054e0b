from .keys import match_keys as match_keys
from .split import in_split as in_split
from .split import parse_split as parse_split
from .where import parse_where as parse_where
