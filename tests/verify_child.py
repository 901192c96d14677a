"""Verifies a cache in a process of its own and prints its peak memory in MiB; for one test."""

import contextlib
import resource
import sys

from pipeline.teacher import verify
from pipeline.teacher.verify_config import VerifyCacheConfig

if __name__ == "__main__":
    with contextlib.redirect_stdout(sys.stderr):
        verify.run(VerifyCacheConfig(cache=sys.argv[1]))
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
