"""Print the memory in bytes that loading image files takes: python tests/programs/memory_of_images.py FILE..."""

import resource
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tools"))
from t2t_vit.data.images import load_image  # noqa: E402


def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


before = peak()
for path in sys.argv[1:]:
    load_image(path)
print(peak() - before)
