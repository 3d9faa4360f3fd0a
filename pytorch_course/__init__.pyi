"What editors and type checkers see of the package: its modules, and the names that it offers itself."
from . import archives as archives
from . import arguments as arguments
from . import augmentation as augmentation
from . import autograd as autograd
from . import callbacks as callbacks
from . import checkpoint_files as checkpoint_files
from . import checkpoint_manager as checkpoint_manager
from . import checkpoints as checkpoints
from . import checks as checks
from . import command_line as command_line
from . import custom_datasets as custom_datasets
from . import data as data
from . import data_checks as data_checks
from . import decoding as decoding
from . import distributed as distributed
from . import doctor as doctor
from . import downloads as downloads
from . import evaluation as evaluation
from . import files as files
from . import film_reviews as film_reviews
from . import food_shapes as food_shapes
from . import get_data as get_data
from . import going_modular as going_modular
from . import graph_drawing as graph_drawing
from . import graph_layout as graph_layout
from . import hooks as hooks
from . import image_cache as image_cache
from . import images as images
from . import inference as inference
from . import lr_finder as lr_finder
from . import model as model
from . import performance as performance
from . import plots as plots
from . import recipes as recipes
from . import reproducibility as reproducibility
from . import runs as runs
from . import save_load as save_load
from . import scaffold as scaffold
from . import seeds as seeds
from . import shutdown as shutdown
from . import splits as splits
from . import system as system
from . import tensors as tensors
from . import text as text
from . import tracking as tracking
from . import trainer as trainer
from . import training as training
from . import transfer_weights as transfer_weights
from . import weights_files as weights_files
from . import worker_errors as worker_errors
from .data import create_dataloaders as create_dataloaders, find_splits as find_splits
from .hooks import Callback as Callback
from .image_cache import create_cached_dataloaders as create_cached_dataloaders
from .images import ImageTransform as ImageTransform
from .model import build_model as build_model
from .recipes import fit as fit
from .save_load import load_model as load_model, save_model as save_model
from .trainer import Trainer as Trainer
from .training import train as train

__version__: str
_HOME: dict[str, str]
