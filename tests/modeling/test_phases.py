"""Phases of training: what each trains by, and that weights, optimiser and resume go through."""

from __future__ import annotations

import json
import logging
import shutil

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage

from crbp_d2.analysis.curves import phase_begins, read_log
from crbp_d2.analysis.runs import load_run
from crbp_d2.config import final_node, phases_of
from crbp_d2.core import (
    AndersonAdjoint,
    AndersonSteps,
    ConfigurationError,
    MaskHGRUCell,
    Neumann,
    PlainSteps,
    Unroll,
    build_recurrence,
)
from crbp_d2.engine import Trainer, save_config
from crbp_d2.modeling.build import head_options
from crbp_d2.modeling.phases import Phase, Phases, Recipe
from tests.modeling.test_contour_models import records

SMALL = ("CRBP.CELL.CHANNELS", 4, "CRBP.CELL.KERNEL_SIZE", 3)
QUICK = "quick/pathfinder_bptt.yaml"
CONTRACT = {
    "FROM": 0.5,
    "ALGORITHM": "rbp",
    "SOLVER": {"STEPS": 8, "SPREAD": 3, "NAME": "anderson"},
    "ADJOINT": {"NAME": "anderson", "TERMS": 6},
    "PENALTY": {"SPECTRAL": {"WEIGHT": 1.0}},
}


def config(load_config, *phases: dict, **more: object):
    words = [word for pair in more.items() for word in pair]
    return load_config(QUICK, *SMALL, "CRBP.SOLVER.STEPS", 3, "CRBP.PHASES", phases, *words)


def test_without_phases_there_is_one(load_config):
    cfg = config(load_config)
    (only,) = phases_of(cfg.CRBP)
    assert only.begin == 0 and only.node == cfg.CRBP == final_node(cfg.CRBP)


def test_a_phase_has_what_the_one_before_has_but_for_what_it_names(load_config):
    late = {"FROM": 0.75, "SOLVER": {"STEPS": 9}, "LOSS": {"EARLY_WEIGHT": 0.5}}
    cfg = config(load_config, CONTRACT, late)
    before = cfg.CRBP.clone()
    first, second, third = phases_of(cfg.CRBP)
    assert before == cfg.CRBP
    assert [one.begin for one in (first, second, third)] == [0, 0.5, 0.75]
    assert (first.node.ALGORITHM, first.node.SOLVER.STEPS) == ("bptt", 3)
    assert (second.node.ALGORITHM, second.node.SOLVER.STEPS) == ("rbp", 8)
    assert second.node.LOSS == first.node.LOSS and second.node.CELL == first.node.CELL
    assert third.node.SOLVER.SPREAD == 3 and third.node.SOLVER.STEPS == 9
    assert third.node.ADJOINT == second.node.ADJOINT
    assert final_node(cfg.CRBP).LOSS.EARLY_WEIGHT == 0.5


def test_an_algorithm_begins_with_its_own_solver_and_adjoint(load_config):
    back = {"FROM": 0.8, "ALGORITHM": "crbp", "SOLVER": {"SPREAD": 0}}
    cfg = config(load_config, CONTRACT, back)
    options = head_options(cfg.CRBP, 100)
    first, second = options["earlier"]
    assert [phase.end for phase in (first, second)] == [50, 80]
    assert isinstance(first.recipe.recurrence.adjoint, Unroll)
    contracting = second.recipe.recurrence
    assert isinstance(contracting.solver, AndersonSteps)
    assert isinstance(contracting.adjoint, AndersonAdjoint) and contracting.adjoint.terms == 6
    assert [penalty.name for penalty in contracting.penalties] == ["spectral"]
    final = options["recurrence"]
    assert isinstance(final.solver, PlainSteps) and isinstance(final.adjoint, Neumann)
    # Penalties stay, as everything but solver and adjoint.
    assert [penalty.name for penalty in final.penalties] == ["lcp", "spectral"]
    assert (final.steps, final.spread) == (8, 0)
    assert first.recipe.recurrence.cell is contracting.cell is final.cell


@pytest.mark.parametrize(
    ("phases", "message"),
    [
        ((3,), r"phase 1: must be keys with values, such as \{FROM: 0.5"),
        (({"ALGORITHM": "rbp"},), "phase 1: FROM is the fraction .* got None"),
        (({"FROM": 0},), "above 0 and below 1, got 0"),
        (({"FROM": 1.0},), "below 1, got 1.0"),
        (({"FROM": True},), "got True"),
        (({"FROM": 0.5}, {"FROM": 0.5}), "phase 2: FROM .* above 0.5"),
        (({"FROM": 0.5, "ALGORITM": "rbp"},), "unknown key ALGORITM; did you mean ALGORITHM"),
        (({"FROM": 0.5, "CELL": {"CHANNELS": 8}},), "unknown key CELL; it may set ALGORITHM, "),
        (({"FROM": 0.5, "SOLVER": {"STEP": 8}},), "unknown key SOLVER.STEP; did you mean STEPS"),
        (({"FROM": 0.5, "SOLVER": 8},), "SOLVER is a group of keys"),
        (({"FROM": 0.5, "SOLVER": {"STEPS": "many"}},), r"SOLVER.STEPS: .*[Tt]ype"),
        (
            ({"FROM": 0.5, "PENALTY": {"SCHEDULE": ((1, 0.0),)}},),
            "counts iterations of the whole training; set CRBP.PENALTY.SCHEDULE",
        ),
        (({"FROM": 0.5, "ALGORITHM": "rpb"},), "CRBP.ALGORITHM: unknown algorithm 'rpb'"),
        (({"FROM": 0.5, "ADJOINT": {"TERMS": 3}},), "ADJOINT.TERMS|has no option 'terms'"),
    ],
)
def test_a_mistake_is_named_with_its_phase(phases, message, load_config):
    cfg = config(load_config, *phases)
    with pytest.raises(ConfigurationError, match=message):
        build_model(cfg)


def recipe(cell, steps: int) -> Recipe:
    return Recipe(build_recurrence("rbp", cell, steps=steps))


def test_an_iteration_belongs_to_one_phase_and_a_change_is_logged(caplog):
    cell = MaskHGRUCell(channels=4)
    earlier = [Phase(end, recipe(cell, steps)) for end, steps in ((2, 1), (2, 9), (5, 2))]
    phases = Phases(earlier, recipe(cell, 3))
    assert phases.number is None
    with caplog.at_level(logging.INFO, "crbp_d2.modeling.phases"):
        steps = [phases.at(iteration).recurrence.steps for iteration in range(8)]
    assert steps == [1, 1, 2, 2, 2, 3, 3, 3]
    assert [record.message.split(":")[0] for record in caplog.records] == [
        "iteration 0", "iteration 2", "iteration 5",
    ]  # fmt: skip
    assert "phase 4 of 4: 3 steps, Neumann" in caplog.text and phases.number == 4
    single = Phases([], recipe(cell, 3))
    assert single.at(7).recurrence.steps == 3 and single.number is None


def test_phases_of_other_cells_or_in_no_order_are_refused():
    cell = MaskHGRUCell(channels=4)
    with pytest.raises(ConfigurationError, match="same cell"):
        Phases([Phase(2, recipe(MaskHGRUCell(channels=4), 1))], recipe(cell, 3))
    with pytest.raises(ConfigurationError, match="one after the other"):
        Phases([Phase(5, recipe(cell, 1)), Phase(2, recipe(cell, 1))], recipe(cell, 3))


def test_each_phase_has_its_losses_and_gradients(load_config):
    cfg = config(load_config, CONTRACT, **{"SOLVER.MAX_ITER": 10})
    torch.manual_seed(0)
    model = build_model(cfg).train()
    found = {}
    for iteration in (0, 4, 5, 9):
        model.zero_grad()
        with EventStorage(iteration) as storage:
            losses = model(records(2))
            sum(losses.values()).backward()
        found[iteration] = set(losses), storage
        assert all(p.grad is not None for p in model.parameters())
    assert found[0][0] == found[4][0] == {"loss_sem_seg"}
    assert found[5][0] == found[9][0] == {"loss_sem_seg", "loss_spectral"}
    # That of the iteration before, which is known late.
    assert found[5][1].latest()["recurrence/phase"][0] == 1
    assert found[9][1].latest()["recurrence/phase"][0] == 2
    assert found[5][1].latest()["recurrence/steps"][0] == 3


def test_the_model_that_is_left_is_that_of_the_last_phase(load_config):
    cfg = config(load_config, CONTRACT)
    model = build_model(cfg)
    assert model.sem_seg_head.recurrence.test_steps == 8
    alone = build_model(config(load_config))
    # Phases add nothing to a checkpoint.
    assert model.state_dict().keys() == alone.state_dict().keys()


@pytest.mark.slow
def test_a_training_goes_through_its_phases_and_a_resumed_one_repeats_it(load_config, tmp_path):
    common = {
        **{"SOLVER.MAX_ITER": 8, "SOLVER.CHECKPOINT_PERIOD": 3, "SEED": 5, "DATASETS.TEST": ()},
        **{"SOLVER.IMS_PER_BATCH": 2, "DATALOADER.NUM_WORKERS": 0},
    }
    phase = {**CONTRACT, "FROM": 0.5, "SOLVER": {"STEPS": 4}}

    def train(folder: str, *, resume: bool = False) -> torch.nn.Module:
        cfg = config(load_config, phase, **common, OUTPUT_DIR=str(tmp_path / folder))
        trainer = Trainer(cfg)
        trainer.resume_or_load(resume=resume)
        save_config(cfg)
        trainer.train()
        return trainer.model

    whole = train("whole")
    # What a run killed in its fifth iteration, the first of the second phase, leaves behind.
    (tmp_path / "cut").mkdir()
    shutil.copy(tmp_path / "whole" / "model_0000002.pth", tmp_path / "cut")
    (tmp_path / "cut" / "last_checkpoint").write_text("model_0000002.pth")
    resumed = train("cut", resume=True).state_dict()
    assert all(torch.equal(value, resumed[name]) for name, value in whole.state_dict().items())
    lines = (tmp_path / "whole" / "metrics.json").read_text().splitlines()
    assert json.loads(lines[-1])["recurrence/phase"] == 2
    run = load_run(str(tmp_path / "whole"), data_sets=["pathfinder_tiny_val"])
    assert run.trained_steps == 4


def test_curves_know_where_phases_begin(tmp_path):
    lines = [
        {"iteration": 20 * n + 19, "total_loss": 1.0, "recurrence/phase": 1 + (n > 2) + (n > 5)}
        for n in range(8)
    ]
    (tmp_path / "metrics.json").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    (tmp_path / "config.yaml").write_text("VERSION: 2\n")
    assert phase_begins(read_log(str(tmp_path))) == [79, 139]
