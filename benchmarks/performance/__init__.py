"""What the project costs, against the least that the same work takes: ``make bench``.

Every group of rows is a module with a function ``rows``, and the work that it is compared with is
written plainly, in ``baselines/``, so that a reader can check it.
"""

import os

# By default, the threads of torch wait for one another by computing. As soon as another process
# wants a core, a step takes ten times as long, and a comparison of two shows chance alone. It is
# read when torch is imported, and inherited by all processes that are measured.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
