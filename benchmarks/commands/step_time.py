"""Time and memory of one step; head, model and contour differ in what takes it."""

from __future__ import annotations

import argparse
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

from benchmarks.measure import Measurement, interleave, machine, resident_bytes, save
from benchmarks.subjects import SUBJECTS, Load, build_step
from benchmarks.variants import LEVERS, Variant
from crbp_d2.analysis.commands.arguments import at_least_one
from crbp_d2.output import say
from crbp_d2.progress import tqdm

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
_EXPLANATION = """Time and memory of {described}, variants interleaved.

Prints a Markdown table and writes it with all timings to OUTPUT.md and OUTPUT.json. On a CPU memory
is what autograd saves for the backward pass, and how far a step raises the peak of the resident
memory of a fresh process; on a GPU it is the peak of its allocator.

examples:
  {examples}
"""


class StepTime:
    """A `crbp_d2.engine.Command` that measures training steps or predictions of a subject.

    Args:
        name: of `SUBJECTS`.
        described: what that is, for the help.
        examples: command lines.
    """

    def __init__(self, name: str, described: str, *examples: str) -> None:
        self._name = name
        self._subject = SUBJECTS[name]
        self.__doc__ = _EXPLANATION.format(described=described, examples="\n  ".join(examples))

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """See `crbp_d2.engine.Command`."""
        parser.add_argument(
            "--inference", action="store_true", help="predictions, not training steps"
        )
        parser.add_argument(
            "--variants",
            nargs="+",
            metavar="LABEL",
            help="the first is what the others are compared with. feed-forward, or ALGORITHM "
            f"STEPS[/TERMS] and levers, parted by commas: {', '.join(LEVERS)}; plain for none",
        )
        parser.add_argument("--rounds", type=int, default=5, help="default: 5")
        parser.add_argument("--count", type=int, help="RoIs of the head, else images")
        parser.add_argument("--size", type=int, help="of the images, pixels")
        parser.add_argument("--regions", type=int, help="RoIs of each image of a whole model")
        parser.add_argument(
            "--output", type=Path, help=f"default: outputs/benchmark_{self._name}_..."
        )

    def run(self, arguments: argparse.Namespace) -> None:
        """See `crbp_d2.engine.Command`."""
        load = self._load(arguments)
        at_least_one("--rounds", arguments.rounds)
        subject = self._subject
        default = subject.inference if arguments.inference else subject.training
        variants = {label: subject.variant(label) for label in arguments.variants or default}
        measurements = self._measure(
            variants, load, rounds=arguments.rounds, train=not arguments.inference
        )
        kind = "inference" if arguments.inference else "training"
        output = arguments.output or Path(f"outputs/benchmark_{self._name}_{kind}")
        about = {
            "subject": self._name,
            "kind": kind,
            "load": asdict(load),
            "variants": {label: asdict(variant) for label, variant in variants.items()},
        }
        table = save(output, measurements, about)
        described = ", ".join(f"{key} {value}" for key, value in (asdict(load) | machine()).items())
        say(f"{table}\n{self._name}, {kind}; {described}\n")

    def _load(self, arguments: argparse.Namespace) -> Load:
        given = {name: getattr(arguments, name) for name in ("count", "size", "regions")}
        for name, value in given.items():
            at_least_one(f"--{name}", value)
        chosen = {name: value for name, value in given.items() if value is not None}
        return replace(self._subject.load, **chosen)

    def _measure(
        self, variants: dict[str, Variant], load: Load, *, rounds: int, train: bool
    ) -> list[Measurement]:
        builds = {
            label: partial(build_step, self._subject, variant, CONFIGS, load, train=train)
            for label, variant in variants.items()
        }
        resident = {
            label: resident_bytes(build) for label, build in tqdm(builds.items(), "resident memory")
        }
        steps = {label: build() for label, build in tqdm(builds.items(), "building")}
        with tqdm(total=len(steps) * (rounds + 1), unit="step") as bar:

            def report(what: str) -> None:
                bar.set_postfix_str(what)
                bar.update()

            return [
                replace(one, resident_bytes=resident[one.label])
                for one in interleave(steps, rounds, progress=report)
            ]


HEAD = StepTime(
    "head",
    "the panoptic model's mask head alone, on RoI features",
    "tools/benchmark.py head --rounds 5",
    "tools/benchmark.py head --count 32 --variants feed-forward 'crbp 10' 'bptt 10'",
)
MODEL = StepTime(
    "model",
    "the whole panoptic model, on photographs",
    "tools/benchmark.py model --inference --count 1 --size 800 --regions 32",
)
CONTOUR = StepTime(
    "contour",
    "the whole contour model, on grey images",
    "tools/benchmark.py contour --size 150 --variants feed-forward 'crbp 20/15' 'bptt 6, FFT'",
)
