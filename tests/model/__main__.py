"""`python -m tests.model`: run random histories through the real conductor for as long as requested."""

import sys

from tests.model.model import main

sys.exit(main())
