#!/bin/sh
# All that needs a GPU, in one go: what the machine is, the tests, the gathers' benchmark.
#
#   benchmarks/gpu_check.sh [PYTHON] [OUT] [TEST_SECONDS] [BENCHMARK_SECONDS]
#
# Prints as it goes, and leaves figures in OUT: tests.json, gather.json. A step that fails or runs
# out of time does not keep the next from running; the exit code is the first failure's.
set -u
python=${1:-python3}
out=${2:-gpu-out}
test_seconds=${3:-240}
benchmark_seconds=${4:-150}
cd "$(dirname "$0")/.."
mkdir -p "$out"
out=$(cd "$out" && pwd)
failed=0
export PYTHONUNBUFFERED=1

step() {
    limit=$1
    title=$2
    shift 2
    printf '\n== %s (at most %s s)\n' "$title" "$limit"
    begin=$(date +%s)
    timeout -k 10 "$limit" "$@"
    code=$?
    printf '== %s: exit %s, %s s\n' "$title" "$code" "$(($(date +%s) - begin))"
    [ "$failed" -ne 0 ] || failed=$code
}

step 20 "the GPU" nvidia-smi --query-gpu=name,driver_version,memory.total,pcie.link.gen.current,pcie.link.width.current --format=csv
step 90 "the ladder" "$python" -c "
import platform, shutil, torch
print('Python', platform.python_version(), 'torch', torch.__version__, 'compiler', shutil.which('gcc'))
import triton; print('triton', triton.__version__)
from batchloom.gpu_access import select_backend
choice = select_backend()
for a in choice.ladder:
    print(f'{a.backend}: {a.works}: {a.reason}')
print('huge pages', open('/sys/kernel/mm/transparent_hugepage/enabled').read().strip())
"
BATCHLOOM_GPU_FIGURES="$out/tests.json" step "$test_seconds" "tests" \
    "$python" -m pytest --import-mode=importlib -m gpu -q --maxfail=12 --durations=8 \
    -p no:cacheprovider tests/gpu_access/test_gpu.py tests/samplers/test_gpu_loader.py \
    tests/samplers/graph/test_graph_gpu.py tests/clustering/test_gpu_assignment.py
step 90 "the loader" "$python" benchmarks/loader_gpu.py --json "$out/loader.json"
step 120 "graphs" "$python" benchmarks/graph_training.py --only gpu
step "$((benchmark_seconds + 60))" "benchmark" \
    "$python" benchmarks/gather.py --part gpu --gpu-seconds "$benchmark_seconds" --json "$out/gather.json"
exit "$failed"
