"""Imports `webdataset.TarWriter` without torch, in half a second instead of five, for processes that only make shards.

webdataset imports torch if it is installed, for its loaders; its writer needs torch only to encode tensors.
"""

import sys

if "webdataset" in sys.modules or "torch" in sys.modules:
    from webdataset import TarWriter
else:
    sys.modules["torch"] = None  # type: ignore[assignment] # documented: its import then fails as if it were not installed
    try:
        from webdataset import TarWriter
    finally:
        del sys.modules["torch"]

__all__ = ["TarWriter"]
