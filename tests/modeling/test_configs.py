"""Every config builds, with the published numbers of parameters."""

from __future__ import annotations

import pytest
import torch
from detectron2.modeling import build_model

import crbp_d2.modeling  # noqa: F401  registers RecurrentMaskHead
from crbp_d2.config import read_config
from crbp_d2.core import ConfigurationError
from crbp_d2.core.estimators import ImplicitGradient
from crbp_d2.modeling.build import recurrence
from tests.modeling.conftest import CONFIGS

NAMES = sorted(
    str(path.relative_to(CONFIGS))
    for path in CONFIGS.rglob("*.yaml")
    if not path.name.startswith("Base-")
)


def trainable(model: torch.nn.Module) -> int:
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


@pytest.mark.parametrize("name", NAMES)
def test_every_config_builds(name, load_config):
    model = build_model(load_config(name))
    assert trainable(model) > 0


@pytest.mark.parametrize("name", NAMES)
def test_every_config_can_be_resumed_from_its_first_quarter_on(name, load_config):
    solver = load_config(name).SOLVER
    assert 0 < solver.CHECKPOINT_PERIOD <= solver.MAX_ITER / 4


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("R50_FPN_1x.yaml", 45_751_590),
        ("R101_FPN_3x.yaml", 64_691_494),
        ("R50_FPN_crbp_1x.yaml", 44_968_038),
        ("R50_FPN_bptt_1x.yaml", 44_968_038),
        ("R101_FPN_crbp_3x.yaml", 63_907_942),
    ],
)
def test_trainable_parameters_are_the_published_numbers(name, parameters, load_config):
    assert trainable(build_model(load_config(name))) == parameters


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("CRBP: {STEPZ: 3}", "one.yaml: .*CRBP.STEPZ; did you mean CRBP.STEPS"),
        ("CRBP: {STEPS: many}", "one.yaml: Type mismatch.*CRBP.STEPS"),
        ("CRBP: {EXTRA_STEPS: 8}", "one.yaml: .*CRBP.STEPS_SPREAD"),
        ("CRBP: [", "one.yaml: while parsing"),
        ("_BASE_: other.yaml", "one.yaml: .*other.yaml"),
        ("_BASE_: one.yaml", "one.yaml: .*recursion"),
        ("OUTPUT_DIR: !!python/name:os.system", "one.yaml, line 1; only plain values are read"),
        ("", "one.yaml: not keys with plain values"),
        ("- CRBP", "one.yaml: not keys with plain values"),
        ("1: 2", "one.yaml: not keys with plain values"),
        ("CRBP: 3", "one.yaml: CRBP is a group of keys"),
        ("CRBP: {STEPS: '{[]: 1}'}", "one.yaml: not keys with plain values"),
        ("CRBP: {STEPS: }", "CRBP.STEPS: None is no value of it; .*default, 20"),
        ("SOLVER: {MAX_ITER: }", "SOLVER.MAX_ITER: None is no value of it"),
    ],
)
def test_a_config_file_that_cannot_be_read_is_named_with_the_key(content, message, tmp_path):
    (tmp_path / "one.yaml").write_text(content)
    with pytest.raises(ConfigurationError, match=message):
        read_config(str(tmp_path / "one.yaml"))


def test_none_is_no_value_of_any_key(load_config):
    config = str(CONFIGS / "quick" / "shapes_crbp.yaml")
    for name in load_config("quick/shapes_crbp.yaml").CRBP:
        with pytest.raises(ConfigurationError, match=rf"^CRBP\.{name}: None is no value of it"):
            read_config(config, [f"CRBP.{name}", "None"])
    # Detectron2 itself takes these.
    none = ("SOLVER.WEIGHT_DECAY_NORM", "None", "MODEL.FPN.NORM", "None", "MODEL.WEIGHTS", "None")
    assert read_config(config, none).SOLVER.WEIGHT_DECAY_NORM is None


def test_overrides_come_in_pairs():
    with pytest.raises(ConfigurationError, match="command line: .*odd length"):
        read_config(str(CONFIGS / "quick" / "shapes_crbp.yaml"), ["CRBP.STEPS"])


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("NORM", "SyncBN", r"CRBP\.NORM.*'BN', 'GN', 'IN'"),
        ("STEPS", 0, r"CRBP\.STEPS.*at least 1"),
        ("TEST_STEPS", -1, r"CRBP\.TEST_STEPS.*at least 1"),
        ("LCP_BOUND", 1.0, r"CRBP\.LCP_BOUND.*\[0, 1\)"),
        ("LCP_REDUCTION", "max", r"CRBP\.LCP_REDUCTION.*mean, sum"),
        ("ALGORITHM", "backprop", r"CRBP\.ALGORITHM.*bptt.*crbp"),
        ("NEUMANN_TERMS", 0, r"CRBP\.NEUMANN_TERMS.*jfb"),
        ("NEUMANN_TERMS", -2, r"CRBP\.NEUMANN_TERMS.*at least 0"),
        ("KERNEL_SIZE", 4, r"CRBP\.KERNEL_SIZE.*odd"),
        ("GATE", "none", r"CRBP\.GATE.*gala, pointwise"),
        ("ACTIVATION", "gelu", r"CRBP\.ACTIVATION.*softplus"),
        ("GATE_BIAS", "open", r"CRBP\.GATE_BIAS.*chrono, released, zero"),
        ("CHRONO_STEPS", -1, r"CRBP\.CHRONO_STEPS.*at least 0"),
        ("ON_NONFINITE", "ignore", r"CRBP\.ON_NONFINITE.*raise, skip"),
        ("PENALTY_SAMPLES", -1, r"CRBP\.PENALTY_SAMPLES"),
        ("PENALTY_SCHEDULE", ((5, 1.0), (5, 2.0)), r"CRBP\.PENALTY_SCHEDULE.*ascending"),
        ("PENALTY_SCHEDULE", (1000, 0.0), r"CRBP\.PENALTY_SCHEDULE.*\(\(iteration, factor\)"),
        ("EARLY_LOSS_WEIGHT", -1.0, r"CRBP\.EARLY_LOSS_WEIGHT.*at least 0"),
        ("OUTPUT_NORM", "Batch", r"CRBP\.OUTPUT_NORM.*Batch"),
    ],
)
def test_an_impossible_value_is_refused_by_its_key(key, value, message, load_config):
    cfg = load_config("quick/shapes_crbp.yaml", f"CRBP.{key}", value)
    with pytest.raises(ConfigurationError, match=message):
        build_model(cfg)


@pytest.mark.parametrize(
    ("key", "value"), [("ADJOINT_TOLERANCE", 1.0), ("KRYLOV_SIZE", 0), ("KRYLOV_RESTARTS", 0)]
)
def test_the_linear_solver_is_set_by_its_keys(key, value, load_config):
    usual = ("CRBP.ALGORITHM", "implicit", "CRBP.ADJOINT_TOLERANCE", 0.01, "CRBP.KRYLOV_SIZE", 7)
    estimator = recurrence(load_config("quick/shapes_crbp.yaml", *usual).CRBP).estimator
    assert estimator == ImplicitGradient(adjoint_tolerance=0.01, krylov_size=7)
    with pytest.raises(ConfigurationError, match=rf"CRBP\.{key}"):
        recurrence(load_config("quick/shapes_crbp.yaml", *usual, f"CRBP.{key}", value).CRBP)


def test_every_key_is_explained_in_the_readme(load_config):
    readme = (CONFIGS.parent / "README.md").read_text()
    missing = [k for k in load_config("R50_FPN_1x.yaml").CRBP if f"`{k}`" not in readme]
    assert not missing
