"""`python -m crbp_d2.zoo` prints the cards of all models, as Markdown."""

import sys

from crbp_d2.zoo.cards import markdown

if __name__ == "__main__":
    sys.stdout.write(markdown())
