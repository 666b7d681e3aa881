"""`python -m relu_ops`: the command line."""

import sys

from relu_ops.cli import main

sys.exit(main())
