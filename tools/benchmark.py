#!/usr/bin/env python3
"""Time and memory of the recurrent models beside their rivals, interleaved.

Prints a Markdown table and writes it with all timings to OUTPUT.md and OUTPUT.json. On a CPU memory
is what autograd saves for the backward pass, and how far a step raises the peak of the resident
memory of a fresh process; on a GPU it is the peak of its allocator.

examples:
  tools/benchmark.py head --rounds 5
  tools/benchmark.py model --inference --count 1 --size 800 --regions 32
  tools/benchmark.py pathfinder --size 150 --variants feed-forward 'crbp 20/15, plain' 'bptt 6, FFT'
"""

import argparse
import datetime
import sys
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

from tqdm import tqdm

from crbp_d2.analysis.benchmark import (
    LEVERS,
    SUBJECTS,
    build_step,
    interleave,
    markdown,
    resident_bytes,
)
from crbp_d2.analysis.benchmark.measure import machine
from crbp_d2.core import ConfigurationError
from crbp_d2.data.storage import write_json, write_whole
from crbp_d2.launch import run_alone

CONFIGS = Path(__file__).resolve().parent.parent / "configs"


def main() -> None:
    """Parse the arguments, measure, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("subject", choices=list(SUBJECTS))
    parser.add_argument("--inference", action="store_true", help="predictions, not training steps")
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
    parser.add_argument("--output", type=Path, help="default: outputs/benchmark_SUBJECT_...")
    arguments = parser.parse_args()
    subject = SUBJECTS[arguments.subject]
    labels = arguments.variants or (subject.inference if arguments.inference else subject.training)
    try:
        known = {label: subject.variant(label) for label in labels}
    except ConfigurationError as error:
        parser.error(str(error))
    load = replace(
        subject.load,
        **{
            name: getattr(arguments, name)
            for name in ("count", "size", "regions")
            if getattr(arguments, name) is not None
        },
    )
    if min(load.count, load.size, load.regions, arguments.rounds) < 1:
        parser.error("--count, --size, --regions and --rounds must be at least 1")
    train = not arguments.inference
    builds = {
        label: partial(build_step, subject, known[label], CONFIGS, load, train=train)
        for label in labels
    }
    resident = {label: resident_bytes(builds[label]) for label in tqdm(labels, "resident memory")}
    steps = {label: builds[label]() for label in tqdm(labels, "building")}
    with tqdm(total=len(labels) * (arguments.rounds + 1), unit="step") as bar:

        def report(what: str) -> None:
            bar.set_postfix_str(what)
            bar.update()

        measurements = [
            replace(one, resident_bytes=resident[one.label])
            for one in interleave(steps, arguments.rounds, progress=report)
        ]
    kind = "training" if train else "inference"
    output = arguments.output or Path(f"outputs/benchmark_{arguments.subject}_{kind}")
    table = "\n".join(markdown(measurements)) + "\n"
    output.parent.mkdir(parents=True, exist_ok=True)
    write_whole(output.with_name(f"{output.name}.md"), table.encode())
    write_json(
        output.with_name(f"{output.name}.json"),
        {
            "subject": arguments.subject,
            "kind": kind,
            "load": asdict(load),
            "date": datetime.date.today().isoformat(),
            "machine": machine(),
            "variants": {label: asdict(known[label]) for label in labels},
            "measurements": [asdict(one) for one in measurements],
        },
    )
    described = ", ".join(f"{key} {value}" for key, value in (asdict(load) | machine()).items())
    sys.stdout.write(f"{table}\n{arguments.subject}, {kind}; {described}\n")


if __name__ == "__main__":
    run_alone(main)
