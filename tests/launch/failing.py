"""A program in two processes of which the second fails, as the environment variable KIND says,
while the first waits for it."""

import os

from detectron2.utils import comm

from crbp_d2.data import DatasetError
from crbp_d2.engine import argument_parser
from crbp_d2.launch import ending_with_message, launch
from crbp_d2.place import find_place


def main(arguments):
    if comm.get_rank() == 1:
        if os.environ["KIND"] == "mistake":
            raise DatasetError("3.jpg: not an image")
        raise KeyError("of rank 1")
    comm.synchronize()


if __name__ == "__main__":
    arguments = argument_parser().parse_args()
    with ending_with_message():
        launch(main, arguments, find_place(arguments), gpu=False)
