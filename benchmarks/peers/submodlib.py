"""submodlib's lazy greedy choice on a kernel: KERNEL.npy K REPEATS → one line of JSON."""

import json
import sys
import time

import numpy as np
from submodlib.functions.facilityLocation import FacilityLocationFunction

kernel, k, repeats = np.load(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
n, best, picks = len(kernel), float("inf"), []
for _ in range(repeats):
    function = FacilityLocationFunction(n=n, mode="dense", sijs=kernel, separate_rep=False)
    start = time.process_time()
    found = function.maximize(budget=k, optimizer="LazyGreedy", show_progress=False)
    best = min(best, time.process_time() - start)
    picks = [int(row) for row, _ in found]
print(json.dumps({"cpu": best, "rows": picks}))
