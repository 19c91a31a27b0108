"""`python -m crbp_d2.config` prints every key, its default and its meaning, as Markdown."""

import sys

from crbp_d2.config.table import markdown

if __name__ == "__main__":
    sys.stdout.write(markdown())
