#!/usr/bin/env python3
"""Run a command in several processes that form a simulated pod: see `local_pod.py --help`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from t5x_lite.distributed.local_launcher import main

main()
