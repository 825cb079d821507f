"""Uses the installed package from a folder that has its own models.py, data.py and config.py.

python -I installed_package.py SITE_PACKAGES, run in that folder.
"""

import sys
from pathlib import Path

sys.path[:0] = [sys.argv[1], "."]
import t2t_vit  # noqa: E402

assert "paddle" not in sys.modules, "import t2t_vit imports paddle"
assert t2t_vit.__file__.startswith(sys.argv[1]), t2t_vit.__file__
assert Path(t2t_vit.__file__).with_name("py.typed").is_file(), "type checkers would ignore the annotations"

import config  # noqa: E402
import data  # noqa: E402
import models  # noqa: E402

assert (config.OWN, data.OWN, models.OWN) == (True, True, True)

import paddle  # noqa: E402

model = t2t_vit.create_model("t2t_vit_14", num_classes=10)
assert isinstance(model, paddle.nn.Layer) and model.head.bias.shape == [10]
assert "pit_ti" in t2t_vit.list_models()

from t2t_vit.config import class_list  # noqa: E402
from t2t_vit.data.classes import read_classes  # noqa: E402

cfg = t2t_vit.load_config("own.yaml")
assert cfg.MODEL.NAME == "pit_ti" and len(read_classes(class_list(cfg)).names) == 1000
assert t2t_vit.load_config("configs/lit_data.yaml").NAME == "lit_data"
assert t2t_vit.preprocess("t2t_vit_14").cfg.VAL.CROP_PCT == 0.9
print("done")
