"""The few calls of the CUDA runtime that host memory needs, each returning CUDA's own code.

Registering goes through ``torch.cuda.cudart()``, which lets go of the interpreter's lock. The rest
(the last error, a device pointer, device attributes) torch does not offer; it is called by ctypes
in the very library that torch has loaded, since the last error belongs to a library's thread.

A `Runtime` can be given wherever one is used, so that each code can be had without a GPU.
"""

from __future__ import annotations

import ctypes
from functools import cache, cached_property
from typing import Any, Protocol

import torch

from ..dataplane.errors import UnifiedAccessUnavailable
from .transfer import gpu_path

__all__ = [
    "MAPPED",
    "PORTABLE",
    "READ_ONLY",
    "SAME_POINTER",
    "READ_ONLY_SUPPORTED",
    "CudaRuntime",
    "Runtime",
    "cuda_runtime",
    "error_name",
]

# Flags of cudaHostRegister: valid in every context; mapped for the GPU; the GPU only reads.
PORTABLE, MAPPED, READ_ONLY = 1, 2, 8

# Attributes of a device: registered memory has its host address on the GPU; READ_ONLY is known.
SAME_POINTER, READ_ONLY_SUPPORTED = 91, 113

_NAMES = {
    1: "cudaErrorInvalidValue",
    2: "cudaErrorMemoryAllocation",
    4: "cudaErrorCudartUnloading",
    35: "cudaErrorInsufficientDriver",
    100: "cudaErrorNoDevice",
    712: "cudaErrorHostMemoryAlreadyRegistered",
    713: "cudaErrorHostMemoryNotRegistered",
    801: "cudaErrorNotSupported",
}


def error_name(code: int) -> str:
    return _NAMES.get(code, f"cudaError {code}")


class Runtime(Protocol):
    """What registering asks of CUDA. Codes are CUDA's: 0 is success."""

    def register(self, address: int, nbytes: int, flags: int) -> int:
        """cudaHostRegister: pin pages and map them for the GPU."""

    def unregister(self, address: int) -> int:
        """cudaHostUnregister, by the address that was registered."""

    def device_pointer(self, address: int) -> tuple[int, int]:
        """Return (code, the GPU's address) of mapped host memory: cudaHostGetDevicePointer."""

    def attribute(self, attribute: int) -> int:
        """Return an attribute of the current device; 0 where it is not known."""

    def clear_error(self) -> int:
        """Take the last error away, so that no later launch is blamed for it: cudaGetLastError."""


class CudaRuntime:
    """The runtime that torch uses. Use `cuda_runtime`, which makes it once."""

    def register(self, address: int, nbytes: int, flags: int) -> int:
        return int(_cudart().cudaHostRegister(address, nbytes, flags))

    def unregister(self, address: int) -> int:
        return int(_cudart().cudaHostUnregister(address))

    def device_pointer(self, address: int) -> tuple[int, int]:
        if self._library is None:
            return 0, address  # by unified addressing; the liveness probe has the last word
        found = ctypes.c_void_p()
        code = self._library.cudaHostGetDevicePointer(
            ctypes.byref(found), ctypes.c_void_p(address), ctypes.c_uint(0)
        )
        return int(code), found.value or 0

    def attribute(self, attribute: int) -> int:
        if self._library is None:
            return 0
        value = ctypes.c_int(0)
        code = self._library.cudaDeviceGetAttribute(
            ctypes.byref(value), ctypes.c_int(attribute), ctypes.c_int(torch.cuda.current_device())
        )
        if code:
            self.clear_error()
        return value.value if code == 0 else 0

    def clear_error(self) -> int:
        return 0 if self._library is None else int(self._library.cudaGetLastError())

    @cached_property
    def _library(self) -> ctypes.CDLL | None:
        _cudart()  # torch has loaded it: the name alone finds that very one
        major = str(torch.version.cuda).split(".")[0]
        for name in (f"libcudart.so.{major}", f"libcudart.so.{major}.0"):
            try:
                return ctypes.CDLL(name)
            except OSError:
                continue
        return None


@cache
def cuda_runtime() -> CudaRuntime:
    """Return the runtime.

    Raises
    ------
    UnifiedAccessUnavailable
        Where torch has no CUDA or finds no GPU; says which.
    """
    if not torch.cuda.is_available():
        raise UnifiedAccessUnavailable(
            f"Host memory cannot be mapped for a GPU: {gpu_path().reason}"
        )
    return CudaRuntime()


def _cudart() -> Any:
    return torch.cuda.cudart()
