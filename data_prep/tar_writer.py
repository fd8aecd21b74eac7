"""`webdataset.TarWriter`, imported without torch: half a second instead of five, in processes that make shards only.

webdataset offers torch where it finds it, for its loaders; its writer needs it only to encode tensors.
"""

import sys

if "webdataset" in sys.modules or "torch" in sys.modules:
    from webdataset import TarWriter
else:
    sys.modules["torch"] = None  # type: ignore[assignment] # documented: the import fails as if it were not installed
    try:
        from webdataset import TarWriter
    finally:
        del sys.modules["torch"]

__all__ = ["TarWriter"]
