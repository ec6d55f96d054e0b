"""apricot's lazy greedy choice on a kernel: KERNEL.npy K REPEATS → one line of JSON."""

import json
import sys
import time

import numpy as np
from apricot import FacilityLocationSelection

kernel, k, repeats = np.load(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
best, picks = float("inf"), []
for _ in range(repeats):
    selector = FacilityLocationSelection(k, metric="precomputed", optimizer="lazy")
    start = time.process_time()
    selector.fit(kernel.astype(np.float64))
    best = min(best, time.process_time() - start)
    picks = [int(row) for row in selector.ranking]
print(json.dumps({"cpu": best, "rows": picks}))
