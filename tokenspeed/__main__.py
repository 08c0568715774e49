"""python -m tokenspeed"""

import sys

from tokenspeed.cli import main

sys.exit(main())
