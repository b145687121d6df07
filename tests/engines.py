"""Both ways to cut and to merge: in Python, and in C where it was built."""

from __future__ import annotations

from collections.abc import Callable

from flanneld_py.encap.checksum import Buffer
from flanneld_py.encap.merge import Coalesce, coalesce, coalesce_in_python
from flanneld_py.encap.offload import segment, segment_in_python

Cutter = Callable[[Buffer, Buffer, bytes], tuple[bytes, int]]

CUTTERS: tuple[Cutter, ...] = tuple({segment_in_python: 0, segment: 0})
COALESCERS: tuple[Coalesce, ...] = tuple({coalesce_in_python: 0, coalesce: 0})
