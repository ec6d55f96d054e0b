from .cpu import CpuGather as CpuGather
from .transfer import GpuPath as GpuPath
from .transfer import gpu_path as gpu_path
from .transfer import to_device as to_device
