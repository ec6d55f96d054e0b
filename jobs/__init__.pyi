from .methods import register as register
from .planning import plan as plan
from .planning import run as run
from .spec import JobSpec as JobSpec
