"""One HTML file about trained models: their figures, and what they answer at every step."""

from .build import Written, write_page
from .collect import load_recurrent_runs, shared_data_set

__all__ = ["Written", "load_recurrent_runs", "shared_data_set", "write_page"]
