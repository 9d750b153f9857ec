import sys

sys.path.insert(0, "/usr/lib/roomkey")
from agent.cli import main

sys.exit(main())
