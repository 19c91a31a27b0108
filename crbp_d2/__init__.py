"""C-RBP for Detectron2: recurrent circuits for segmentation, trained in constant memory."""

__version__ = "0.1.0"
