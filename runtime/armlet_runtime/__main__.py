"""``python -m armlet_runtime`` is the ``armlet`` command."""

import sys

from .cli import main

sys.exit(main())
