"""Imported first, before PyTorch: how its threads wait for each other on the CPU.

PyTorch's OpenMP threads spin while they wait. As soon as anything else wants a core (a browser that plays the
videos is enough), the spinning steals it from the thread that is waited for: on two busy cores decoding took
18 to 22 s, and 3.6 to 5.5 s with threads that sleep. On idle cores both take the same within a few percent.
OMP_WAIT_POLICY in the environment wins.
"""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
