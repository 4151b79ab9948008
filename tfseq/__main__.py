"""`python -m tfseq` is `tfseq`."""

import sys

from tfseq.cli import main

sys.exit(main())
