"""Every config builds, with the published numbers of parameters."""

from __future__ import annotations

import re

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.modeling import build_model

import crbp_d2.modeling  # noqa: F401  registers RecurrentMaskHead
from crbp_d2.config import add_crbp_config, read_config, value_of
from crbp_d2.config.renamed import REMOVED, RENAMED
from crbp_d2.core import (
    GMRES,
    AndersonSteps,
    ConfigurationError,
    LipschitzCoefficientPenalty,
    Neumann,
    SpectralPenalty,
    Unroll,
    WeightSchedule,
)
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
    cfg = load_config(name)
    if "timm" in cfg.MODEL.BACKBONE.NAME:
        pytest.importorskip("timm", reason="timm (the extra pretrained) is not installed")
    assert trainable(build_model(cfg)) > 0


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
        # Not published: a convolution, a bias and a norm more than R50_FPN_crbp_1x.
        ("R50_FPN_settling_1x.yaml", 44_968_038 + 256 * (256 * 9 + 1) + 2 * 256),
    ],
)
def test_trainable_parameters_are_the_published_numbers(name, parameters, load_config):
    assert trainable(build_model(load_config(name))) == parameters


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("CRBP: {STEPZ: 3}", "one.yaml: .*CRBP.STEPZ; did you mean CRBP.SOLVER.STEPS"),
        ("CRBP: {SOVLER: {STEPS: 3}}", "one.yaml: .*CRBP.SOVLER; did you mean CRBP.SOLVER"),
        ("CRBP: {SOLVER: {STEPS: many}}", "one.yaml: Type mismatch.*CRBP.SOLVER.STEPS"),
        ("CRBP: {EXTRA_STEPS: 8}", "one.yaml: .*CRBP.SOLVER.SPREAD"),
        ("CRBP: [", "one.yaml: while parsing"),
        ("_BASE_: other.yaml", "one.yaml: .*other.yaml"),
        ("_BASE_: one.yaml", "one.yaml: .*recursion"),
        ("OUTPUT_DIR: !!python/name:os.system", "one.yaml, line 1; only plain values are read"),
        ("", "one.yaml: not keys with plain values"),
        ("- CRBP", "one.yaml: not keys with plain values"),
        ("1: 2", "one.yaml: not keys with plain values"),
        ("CRBP: 3", "one.yaml: CRBP is a group of keys"),
        ("CRBP: {SOLVER: {STEPS: '{[]: 1}'}}", "one.yaml: not keys with plain values"),
        ("CRBP: {SOLVER: {STEPS: }}", "CRBP.SOLVER.STEPS: None is no value of it; .*default, 20"),
        ("SOLVER: {MAX_ITER: }", "SOLVER.MAX_ITER: None is no value of it"),
    ],
)
def test_a_config_file_that_cannot_be_read_is_named_with_the_key(content, message, tmp_path):
    (tmp_path / "one.yaml").write_text(content)
    with pytest.raises(ConfigurationError, match=message):
        read_config(str(tmp_path / "one.yaml"))


@pytest.mark.parametrize(
    "key",
    [
        *("ALGORITHM", "ON_NONFINITE", "CHUNK_SAMPLES", "SOLVER.NAME", "SOLVER.STEPS"),
        *("SOLVER.TEST_STEPS", "SOLVER.SPREAD", "SOLVER.COMPILE", "ADJOINT.NAME", "CELL.NAME"),
        *("CELL.CHANNELS", "LOSS.EVERY_STEP", "LOSS.EARLY_WEIGHT", "LOSS.EARLY_FROM"),
    ],
)
def test_none_is_no_value_of_a_key_that_is_no_option(key):
    config = str(CONFIGS / "quick" / "shapes_crbp.yaml")
    with pytest.raises(ConfigurationError, match=rf"^CRBP\.{key}: None is no value of it"):
        read_config(config, [f"CRBP.{key}", "None"])


def test_none_leaves_an_option_to_its_part(load_config):
    config = str(CONFIGS / "quick" / "shapes_crbp.yaml")
    overrides = ("CRBP.ADJOINT.TERMS", "None", "CRBP.PENALTY.LCP.WEIGHT", "None")
    found = recurrence(read_config(config, overrides).CRBP)
    assert found.adjoint == Neumann()
    assert found.penalties[0].weight == LipschitzCoefficientPenalty().weight
    # Detectron2 itself takes these.
    none = ("SOLVER.WEIGHT_DECAY_NORM", "None", "MODEL.FPN.NORM", "None", "MODEL.WEIGHTS", "None")
    assert read_config(config, none).SOLVER.WEIGHT_DECAY_NORM is None


@pytest.mark.parametrize("old", [*RENAMED, *REMOVED])
@pytest.mark.parametrize("where", ["file", "command line"])
def test_an_old_key_is_answered_with_the_new_one(old, where, tmp_path):
    config, overrides = CONFIGS / "quick" / "shapes_crbp.yaml", [old, "1"]
    if where == "file":
        config, overrides = tmp_path / "old.yaml", []
        config.write_text(f"CRBP: {{{old.removeprefix('CRBP.')}: 1}}")
    with pytest.raises(ConfigurationError) as raised:
        read_config(str(config), overrides)
    assert RENAMED.get(old, "is gone").partition(",")[0] in str(raised.value)
    assert "\n" not in str(raised.value)


def test_every_new_name_is_a_key():
    cfg = get_cfg()
    add_crbp_config(cfg)
    for new in RENAMED.values():
        for key in re.findall(r"[A-Z_0-9]+(?:\.[A-Z_0-9]+)+", new):
            value_of(cfg, key)


def test_the_old_name_of_a_cell_is_answered_too(tmp_path):
    (tmp_path / "old.yaml").write_text("CRBP: {CELL: hgru}")
    with pytest.raises(ConfigurationError, match=r"the name of a cell is CRBP\.CELL\.NAME"):
        read_config(str(tmp_path / "old.yaml"))


def test_overrides_come_in_pairs():
    with pytest.raises(ConfigurationError, match="command line: .*odd length"):
        read_config(str(CONFIGS / "quick" / "shapes_crbp.yaml"), ["CRBP.SOLVER.STEPS"])


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("CELL.NORM", "SyncBN", r"CRBP\.CELL\.NORM.*'BN', 'GN', 'IN'"),
        ("CELL.NAME", "hgrü", r"CRBP\.CELL\.NAME: unknown cell 'hgrü'"),
        ("SOLVER.STEPS", 0, r"CRBP\.SOLVER\.STEPS.*at least 1"),
        ("SOLVER.TEST_STEPS", -1, r"CRBP\.SOLVER\.TEST_STEPS.*at least 1"),
        ("SOLVER.SPREAD", 10, r"CRBP\.SOLVER\.SPREAD.*below steps"),
        ("SOLVER.TOLERANCE", 0.0, r"CRBP\.SOLVER\.TOLERANCE.*above 0"),
        ("SOLVER.PRECISION", "fp8", r"CRBP\.SOLVER\.PRECISION.*bf16, full"),
        ("SOLVER.MEMORY", 3, r"CRBP\.SOLVER\.MEMORY.*'steps' has no option.*None leaves it out"),
        ("SOLVER.NAME", "newton", r"CRBP\.SOLVER\.NAME: unknown solver 'newton'"),
        ("PENALTY.LCP.BOUND", 1.0, r"CRBP\.PENALTY\.LCP\.BOUND.*\[0, 1\)"),
        ("PENALTY.LCP.REDUCTION", "max", r"CRBP\.PENALTY\.LCP\.REDUCTION.*mean, sum"),
        ("PENALTY.SPECTRAL.MARGIN", 2.0, r"CRBP\.PENALTY\.SPECTRAL\.MARGIN.*\[0, 1\)"),
        ("ALGORITHM", "gradient", r"CRBP\.ALGORITHM.*bptt.*crbp"),
        ("ADJOINT.TERMS", -2, r"CRBP\.ADJOINT\.TERMS.*at least 0"),
        ("ADJOINT.NAME", "andersson", r"CRBP\.ADJOINT\.NAME.*did you mean anderson\?"),
        ("CELL.KERNEL_SIZE", 4, r"CRBP\.CELL\.KERNEL_SIZE.*odd"),
        ("CELL.GATE", "none", r"CRBP\.CELL\.GATE.*gala, pointwise"),
        ("CELL.ACTIVATION_NAME", "gelu", r"CRBP\.CELL\.ACTIVATION_NAME.*softplus"),
        ("CELL.GATE_BIAS", "open", r"CRBP\.CELL\.GATE_BIAS.*chrono, released, zero"),
        ("CELL.CHRONO_STEPS", -1, r"CRBP\.CELL\.CHRONO_STEPS.*at least 0"),
        ("CELL.RECTIFY_STATE", True, r"CRBP\.CELL\.RECTIFY_STATE.*'mask_hgru' has no option"),
        ("ON_NONFINITE", "ignore", r"CRBP\.ON_NONFINITE.*raise, skip"),
        ("CHUNK_SAMPLES", -1, r"CRBP\.CHUNK_SAMPLES.*at least 1"),
        ("PENALTY.SAMPLES", -1, r"CRBP\.PENALTY\.SAMPLES"),
        ("PENALTY.SCHEDULE", ((5, 1.0), (5, 2.0)), r"CRBP\.PENALTY\.SCHEDULE.*ascending"),
        ("PENALTY.SCHEDULE", (1000, 0.0), r"CRBP\.PENALTY\.SCHEDULE.*\(\(iteration, factor\)"),
        ("LOSS.EARLY_WEIGHT", -1.0, r"CRBP\.LOSS\.EARLY_WEIGHT.*at least 0"),
    ],
)
def test_an_impossible_value_is_refused_by_its_key(key, value, message, load_config):
    cfg = load_config("quick/shapes_crbp.yaml", f"CRBP.{key}", value)
    with pytest.raises(ConfigurationError, match=message):
        build_model(cfg)


def test_an_unknown_norm_of_the_readout_is_refused(load_config):
    cfg = load_config("quick/shapes_crbp.yaml", "MODEL.ROI_MASK_HEAD.OUTPUT_NORM", "Batch")
    with pytest.raises(ConfigurationError, match=r"OUTPUT_NORM.*Batch"):
        build_model(cfg)


def test_an_unknown_option_in_a_file_is_refused_with_what_it_may_mean(tmp_path):
    base = CONFIGS / "quick" / "shapes_crbp.yaml"
    (tmp_path / "one.yaml").write_text(
        f"_BASE_: {base}\nCRBP: {{ALGORITHM: crbp, ADJOINT: {{TERM: 3}}, "
        "PENALTY: {LCP: {WEIGTH: 1.0}}}"
    )
    with pytest.raises(ConfigurationError, match=r"CRBP\.PENALTY\.LCP\.WEIGTH.*mean weight\?"):
        recurrence(read_config(str(tmp_path / "one.yaml")).CRBP)
    (tmp_path / "one.yaml").write_text(
        f"_BASE_: {base}\nCRBP: {{ALGORITHM: crbp, ADJOINT: {{TERM: 3}}}}"
    )
    with pytest.raises(ConfigurationError, match=r"CRBP\.ADJOINT\.TERM.*mean terms\?"):
        recurrence(read_config(str(tmp_path / "one.yaml")).CRBP)


@pytest.mark.parametrize(
    ("key", "value"), [("TOLERANCE", 1.0), ("KRYLOV_SIZE", 0), ("RESTARTS", 0)]
)
def test_the_linear_solver_is_set_by_its_keys(key, value, load_config):
    usual = (
        *("CRBP.ALGORITHM", "implicit", "CRBP.ADJOINT.TOLERANCE", 0.01),
        *("CRBP.ADJOINT.KRYLOV_SIZE", 7),
    )
    adjoint = recurrence(load_config("quick/shapes_crbp.yaml", *usual).CRBP).adjoint
    assert adjoint == GMRES(tolerance=0.01, krylov_size=7)
    with pytest.raises(ConfigurationError, match=rf"CRBP\.ADJOINT\.{key}"):
        recurrence(load_config("quick/shapes_crbp.yaml", *usual, f"CRBP.ADJOINT.{key}", value).CRBP)


def test_another_algorithm_on_the_command_line_leaves_out_options_of_the_files(load_config):
    config = "quick/shapes_crbp.yaml"  # with CRBP.ADJOINT.TERMS 8
    assert recurrence(load_config(config, "CRBP.ALGORITHM", "bptt").CRBP).adjoint == Unroll()
    named = ("CRBP.ADJOINT.NAME", "gmres", "CRBP.ADJOINT.RESTARTS", 3)
    assert recurrence(load_config(config, *named).CRBP).adjoint == GMRES(restarts=3)
    for terms in (("CRBP.ADJOINT.TERMS", 4), ("CRBP.ADJOINT.TERMZ", 4)):
        with pytest.raises(ConfigurationError, match=r"CRBP\.ADJOINT\.TERM"):
            recurrence(load_config(config, "CRBP.ALGORITHM", "jfb", *terms).CRBP)


def test_key_and_cure_are_said_once(load_config):
    overrides = ("CRBP.ALGORITHM", "jfb", "CRBP.ADJOINT.TERMS", 4)
    with pytest.raises(ConfigurationError) as raised:
        build_model(load_config("quick/pathfinder_crbp.yaml", *overrides))
    assert str(raised.value) == (
        "CRBP.ADJOINT.TERMS: the adjoint 'one_step' has no option 'terms'; it takes none; None "
        "leaves it out"
    )


def test_a_file_that_chooses_another_part_than_its_base_leaves_out_what_it_inherits(tmp_path):
    base = CONFIGS / "quick" / "shapes_crbp.yaml"  # with CRBP.ADJOINT.TERMS 8
    file = tmp_path / "one.yaml"
    file.write_text(f"_BASE_: {base}\nCRBP: {{ADJOINT: {{NAME: gmres, RESTARTS: 3}}}}")
    assert recurrence(read_config(str(file)).CRBP).adjoint == GMRES(restarts=3)
    file.write_text(f"_BASE_: {base}\nCRBP: {{ADJOINT: {{NAME: gmres, TERMS: 3}}}}")
    with pytest.raises(ConfigurationError, match=r"CRBP\.ADJOINT\.TERMS: .*'gmres' has no option"):
        recurrence(read_config(str(file)).CRBP)


def test_a_preset_is_overridden_part_by_part(load_config):
    overrides = (
        *("CRBP.ALGORITHM", "crbp+spectral", "CRBP.SOLVER.NAME", "anderson"),
        *("CRBP.ADJOINT.NAME", "gmres", "CRBP.PENALTY.SPECTRAL.MARGIN", 0.5),
        *("CRBP.PENALTY.SCHEDULE", ((10, 0.0), (20, 2.0))),
    )
    found = recurrence(load_config("R50_FPN_crbp_1x.yaml", *overrides).CRBP)
    assert found.solver == AndersonSteps() and found.adjoint == GMRES()
    lcp, spectral = found.penalties
    assert lcp == LipschitzCoefficientPenalty(weight=0.001, bound=0.95, reduction="sum")
    assert spectral == SpectralPenalty(WeightSchedule(((10, 0.0), (20, 2.0))), margin=0.5)
