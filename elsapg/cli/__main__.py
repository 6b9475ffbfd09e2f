"""`python -m elsapg.cli`."""

import sys

from elsapg.cli import main

sys.exit(main())
