"""Model families: PaddlePaddle layers that know no config, path or rank."""

from models.identify import has_heads_of, identify, likeliest
from models.layers import in_head
from models.zoo import create_model, list_models, model_family

__all__ = ["create_model", "has_heads_of", "identify", "in_head", "likeliest", "list_models", "model_family"]
