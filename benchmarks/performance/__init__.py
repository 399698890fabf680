"""What the project costs, against the least that the same work takes: ``make bench``.

Every group of rows is a module with a function ``rows``, and the work that it is compared with is
written plainly, in ``baselines/``, so that a reader can check it.
"""

import os

# By default, the threads of torch wait for one another by computing, for long. As soon as another
# process wants a core, a step takes up to ten times as long, and a comparison of two shows chance
# alone. Where nobody does, a step takes as long with this as without. GNU's OpenMP reads it when
# torch is imported, and all processes that are measured inherit it.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
