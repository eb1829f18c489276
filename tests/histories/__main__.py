"""`python -m tests.histories`: run random histories through the real conductor for as long as requested."""

import sys

from tests.histories.model import main

sys.exit(main())
