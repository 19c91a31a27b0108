"""Configurations: the keys of this plugin, and reading them from files and command lines."""

from crbp_d2.config.defaults import add_crbp_config
from crbp_d2.config.limits import require_few_steps
from crbp_d2.config.phases import final_node, phases_of
from crbp_d2.config.reading import keys_of, read_config, value_of

__all__ = [
    "add_crbp_config",
    "final_node",
    "keys_of",
    "phases_of",
    "read_config",
    "require_few_steps",
    "value_of",
]
