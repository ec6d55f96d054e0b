from .cpu import CpuGather as CpuGather
from .packed_gather import PackedGather as PackedGather
from .transfer import GpuPath as GpuPath
from .transfer import gpu_path as gpu_path
from .transfer import to_device as to_device
