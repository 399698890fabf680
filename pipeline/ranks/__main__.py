"""One of the processes that ``--processes`` starts."""

import sys

from pipeline.ranks.launch import follow

if __name__ == "__main__":
    follow(sys.argv[1:])
