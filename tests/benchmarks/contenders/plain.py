"""`plain.py TASK COUNT`: calls the task so often, and prints the seconds that took."""

import sys
import time

from work import TASKS

task, count = TASKS[sys.argv[1]], int(sys.argv[2])
started = time.perf_counter()
for n in range(count):
    task(n)
print(time.perf_counter() - started)
