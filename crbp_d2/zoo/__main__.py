"""`python -m crbp_d2.zoo` prints the cards of all models, as Markdown."""

from crbp_d2.output import only_saying, say
from crbp_d2.zoo.cards import markdown

if __name__ == "__main__":
    with only_saying():
        say(markdown())
