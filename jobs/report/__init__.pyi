from .difference import difference_figures as difference_figures
from .page import difference_page as difference_page
from .page import plan_page as plan_page
from .planned import plan_figures as plan_figures
