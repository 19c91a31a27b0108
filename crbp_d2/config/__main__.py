"""`python -m crbp_d2.config` prints every key, its default and its meaning, as Markdown."""

from crbp_d2.config.table import markdown
from crbp_d2.output import only_saying, say

if __name__ == "__main__":
    with only_saying():
        say(markdown())
