"""Devices, seeds, and model files that describe themselves: what train.py and predict.py need besides."""
from save_load import ModelInfo, load_model, predict_images, save_model
from tensors import pick_device, seed_everything

__all__ = ["ModelInfo", "load_model", "pick_device", "predict_images", "save_model", "seed_everything"]
