"""C-RBP for Detectron2: recurrent circuits for segmentation, trained in constant memory."""

from crbp_d2.quiet import silence

__version__ = "0.2.0"

# Before the packages that warn are imported.
silence()
