"""A driver of some forty lines of C that stands for libcuda.so.1, and its other side.

Its memory is no memory of the process: whoever reads an address of it dies.
"""

from __future__ import annotations

import ctypes
from pathlib import Path

import numpy as np

DRIVER = r"""
#define _GNU_SOURCE
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>
typedef uint64_t Place;
static struct { Place place; char *alias; size_t size; } all[64];
int copied[3], settled;  /* in, out, within */
__thread void *current;
int strange;  /* calls that want the first GPU's context, while another or none is current */
static void asked(void) { strange += current != (void *)1; }
char *at(Place place) {
  for (int i = 0; i < 64; i++)
    if (all[i].size && place >= all[i].place && place < all[i].place + all[i].size)
      return all[i].alias + (place - all[i].place);
  return 0;
}
int living(void) { int n = 0; for (int i = 0; i < 64; i++) n += all[i].size != 0; return n; }
int cuMemAlloc_v2(Place *place, size_t size) {
  asked();
  int i = 0, file = memfd_create("device", 0);
  while (all[i].size) i++;
  if (ftruncate(file, size)) return 2;
  *place = all[i].place = (Place)mmap(0, size, PROT_NONE, MAP_SHARED, file, 0);
  all[i].alias = mmap(0, all[i].size = size, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
  return close(file);
}
int cuMemFree_v2(Place place) {
  asked();
  for (int i = 0; i < 64; i++)
    if (all[i].size && all[i].place == place) {
      munmap((void *)place, all[i].size); munmap(all[i].alias, all[i].size); all[i].size = 0; return 0;
    }
  return 1;
}
static int copy(int way, char *to, const char *from, size_t size) {
  asked();
  if (!to || !from) return 1;
  memcpy(to, from, size); copied[way]++; return 0;
}
int cuMemcpyHtoDAsync_v2(Place to, void *from, size_t n, void *s) { return copy(0, at(to), from, n); }
int cuMemcpyDtoHAsync_v2(void *to, Place from, size_t n, void *s) { return copy(1, to, at(from), n); }
int cuMemcpyDtoDAsync_v2(Place to, Place from, size_t n, void *s) { return copy(2, at(to), at(from), n); }
int cuCtxSynchronize(void) { settled++; return 0; }
int cuInit(unsigned flags) { return 0; }
int cuDeviceGetCount(int *count) { *count = 1; return 0; }
int cuDeviceGet(int *device, int number) { *device = number; return 0; }
int cuDevicePrimaryCtxRetain(void **context, int device) { *context = (void *)1; return 0; }
int cuDevicePrimaryCtxRelease_v2(int device) { return 0; }
int cuCtxSetCurrent(void *context) { current = context; return 0; }
int cuCtxGetCurrent(void **context) { *context = current; return 0; }
int cuMemHostAlloc(void **place, size_t size, unsigned flags) { asked(); return !(*place = malloc(size)); }
int cuMemFreeHost(void *place) { asked(); free(place); return 0; }
int cuStreamCreate(void **stream, unsigned flags) { asked(); *stream = (void *)0x5354; return 0; }
int cuStreamDestroy_v2(void *stream) { asked(); return 0; }
int cuStreamSynchronize(void *stream) { asked(); return 0; }
int cuGetErrorName(int code, const char **name) { *name = "CUDA_ERROR_INVALID_VALUE"; return 0; }
"""


class Driver:
    """The driver's other side: what lies at an address, what has been copied."""

    def __init__(self, library: Path) -> None:
        self._library = ctypes.CDLL(str(library))
        self._library.at.restype, self._library.at.argtypes = ctypes.c_void_p, [ctypes.c_uint64]
        self.living = self._library.living

    def at(self, address: int, shape: tuple[int, ...]) -> np.ndarray:
        alias, count = self._library.at(address), int(np.prod(shape))
        assert alias, "this is no memory of the device"
        return np.ctypeslib.as_array((ctypes.c_float * count).from_address(alias)).reshape(shape)

    @property
    def current(self) -> int:
        """This thread's context."""
        return ctypes.c_void_p.in_dll(self._library, "current").value or 0

    @current.setter
    def current(self, context: int) -> None:
        self._library.cuCtxSetCurrent(ctypes.c_void_p(context))
        ctypes.c_int.in_dll(self._library, "strange").value = 0

    def strange(self) -> int:
        """Calls so far, since a context was made current, that met another one than the first GPU's."""
        return ctypes.c_int.in_dll(self._library, "strange").value

    def counts(self) -> list[int]:
        """Copies in, out and within since the last time, and how often all streams were waited for."""
        found = (ctypes.c_int * 3).in_dll(self._library, "copied"), ctypes.c_int.in_dll(self._library, "settled")
        told = [*found[0], found[1].value]
        found[0][:], found[1].value = [0, 0, 0], 0
        return told
