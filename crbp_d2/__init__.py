"""C-RBP for Detectron2: recurrent circuits in place of feed-forward heads, trained in constant memory."""

__version__ = "0.1.0"
