"""``python -m milp_agt``: the command line where its script is not on the path."""

import sys

from milp_agt.cli import main

sys.exit(main())
