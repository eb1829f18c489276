"""`python -m tests.model`: random histories through the real conductor, as long as asked for."""

import sys

from tests.model.model import main

sys.exit(main())
