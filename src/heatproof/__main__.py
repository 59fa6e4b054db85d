"""`python -m heatproof` is the command `heatproof`."""

import sys

from heatproof.cli import main

sys.exit(main())
