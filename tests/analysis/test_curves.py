"""Training curves, from made-up logs with known numbers."""

from __future__ import annotations

import csv
import json
import logging
import math
import runpy
import sys
from pathlib import Path

import pytest

from crbp_d2.analysis.curves import (
    draw_curves,
    published_lines,
    read_log,
    read_metrics,
    running_median,
    write_csv,
)
from crbp_d2.core import ConfigurationError
from tests.modeling.conftest import CONFIGS

TOOL = CONFIGS.parent / "tools" / "analyze.py"
LINES = [
    {"iteration": 19, "total_loss": 3.0, "loss_sem_seg": 2.0, "recurrence/lcp": 1e-3},
    {"iteration": 39, "total_loss": 2.0, "loss_sem_seg": 1.5, "recurrence/lcp": 1e-5},
    {"iteration": 59, "total_loss": 1.0, "loss_sem_seg": 0.5, "recurrence/lcp": 0.0},
    {"iteration": 60, "pathfinder/F1": 0.75},
]


def write(folder: Path, lines: list[dict], *, end: str = "", batch_size: int = 8) -> Path:
    folder.mkdir(exist_ok=True)
    text = "".join(f"{json.dumps(line)}\n" for line in lines)
    (folder / "metrics.json").write_text(text + end)
    (folder / "config.yaml").write_text(f"SOLVER:\n  IMS_PER_BATCH: {batch_size}\nVERSION: 2\n")
    return folder


def labels(figure) -> list[str]:
    return [axis.get_ylabel() for axis in figure.axes]


def run_tool(monkeypatch, *arguments: object) -> None:
    monkeypatch.setattr(sys, "argv", ["analyze.py", "curves", *map(str, arguments)])
    runpy.run_path(str(TOOL), run_name="__main__")


def test_the_last_line_of_an_iteration_counts(tmp_path):
    again = [{"iteration": 39, "total_loss": 2.5}, {"iteration": 59, "total_loss": 1.5}]
    found = read_metrics(write(tmp_path, [*LINES, *again]) / "metrics.json")
    assert found["total_loss"] == {19: 3.0, 39: 2.5, 59: 1.5}
    assert found["loss_sem_seg"] == {19: 2.0}
    assert list(found["total_loss"]) == [19, 39, 59]


def test_a_cut_last_line_is_left_out_with_a_warning(tmp_path, caplog):
    write(tmp_path, LINES[:2], end='{"iteration": 59, "total_lo')
    with caplog.at_level(logging.WARNING):
        found = read_metrics(tmp_path / "metrics.json")
    assert found["total_loss"] == {19: 3.0, 39: 2.0}
    assert "line 3" in caplog.text and str(tmp_path) in caplog.text


def test_what_a_resumed_run_wrote_behind_a_cut_line_is_kept(tmp_path, caplog):
    write(tmp_path, LINES[:1], end=f'{{"iteration": 39, "tot{json.dumps(LINES[2])}\n')
    with caplog.at_level(logging.WARNING):
        found = read_metrics(tmp_path / "metrics.json")
    assert found["total_loss"] == {19: 3.0, 59: 1.0}
    assert "line 2" in caplog.text


def test_running_medians_pass_over_outliers_and_end_where_the_values_do():
    values = [1.0, 100.0, 2.0, 3.0, 4.0, -50.0, 5.0]
    assert running_median(values, 3).tolist() == [1.0, 2.0, 3.0, 3.0, 3.0, 4.0, 5.0]
    assert running_median(values, 5).tolist() == [1.0, 2.0, 3.0, 3.0, 3.0, 4.0, 5.0]
    assert running_median(values, 1).tolist() == values
    assert running_median([7.0]).tolist() == [7.0]


def test_there_is_a_panel_for_what_a_run_has_logged(tmp_path):
    contour = read_log(f"contour={write(tmp_path / 'a', LINES)}")
    mask = [{"iteration": 19, "total_loss": 5.0, "loss_mask": 0.7, "loss_sem_seg": 2.0}]
    panoptic = read_log(str(write(tmp_path / "b", mask)))
    assert (contour.label, panoptic.label) == ("contour", "b")
    figure = draw_curves([contour, panoptic], window=1)
    assert labels(figure) == ["F1", "total loss", "task loss", "Lipschitz penalty, unweighted"]
    # The faint line and the median of each run; of two task losses that of the masks.
    curves = [list(line.get_ydata()) for line in figure.axes[2].lines]
    assert curves == [[2.0, 1.5, 0.5], [2.0, 1.5, 0.5], [0.7], [0.7]]


def test_a_single_loss_that_is_logged_as_the_total_is_the_task_loss(tmp_path):
    figure = draw_curves([read_log(str(write(tmp_path, [{"iteration": 19, "total_loss": 0.1}])))])
    assert labels(figure) == ["total loss", "task loss"]


def test_zeros_stay_on_the_logarithmic_axis(tmp_path):
    figure = draw_curves([read_log(str(write(tmp_path, LINES)))], window=1)
    axis = figure.axes[-1]
    figure.canvas.draw()
    places = axis.transData.transform([(59, 0.0), (39, 1e-5), (19, 1e-3)])[:, 1]
    assert all(math.isfinite(place) for place in places)
    bottom, top = axis.bbox.y0, axis.bbox.y1
    assert bottom == pytest.approx(places[0]) and places[0] < places[1] < places[2] < top
    positive = [{**line, "recurrence/lcp": 0.1} for line in LINES[:2]]
    figure = draw_curves([read_log(str(write(tmp_path, positive)))])
    assert figure.axes[-1].get_yscale() == "log"


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("iteration", "1" + "0" * 400),
        ("iteration", str(10**13)),
        ("total_loss", "1e308"),
        ("total_loss", "-1e308"),
        ("total_loss", "1" + "0" * 400),
    ],
)
def test_numbers_that_nothing_logs_are_told_with_their_line(key, value, tmp_path):
    folder = write(tmp_path, [{"iteration": 19, "total_loss": math.inf}])
    path = folder / "metrics.json"
    line = json.dumps({"iteration": 39, "total_loss": 1.0, key: "VALUE"}).replace('"VALUE"', value)
    path.write_text(f"{path.read_text()}{line}\n")
    with pytest.raises(ConfigurationError, match=f"^{path}, line 2: {key} is beyond .*; remove"):
        read_log(str(folder))


def test_infinite_and_large_losses_are_drawn(tmp_path):
    values = [math.inf, 1e300, -1e300, math.nan, -math.inf, 1.0]
    lines = [{"iteration": 20 * n, "total_loss": value} for n, value in enumerate(values)]
    draw_curves([read_log(str(write(tmp_path, lines)))]).canvas.draw()


def test_published_scores_lie_over_the_scores_alone(tmp_path):
    run = read_log(str(write(tmp_path, LINES)))
    figure = draw_curves([run], published=published_lines("pathfinder_14:crbp,rbp"))
    names = {text.get_text() for text in figure.axes[0].get_legend().get_texts()}
    assert names == {"crbp (Linsley et al. 2020)", "rbp (Linsley et al. 2020)"}
    assert [0.9804, 0.9804] in [list(line.get_ydata()) for line in figure.axes[0].lines]
    assert figure.axes[1].get_legend() is None
    with pytest.raises(ConfigurationError, match="no run has logged panoptic_seg/PQ"):
        draw_curves([run], published=published_lines("panoptic_R50"))
    with pytest.raises(ConfigurationError, match=r"of adam in pathfinder_14; choose from bptt, "):
        published_lines("pathfinder_14:adam")


def test_published_learning_curves_lie_over_images(tmp_path):
    run = read_log(str(write(tmp_path / "run", LINES)))
    table = tmp_path / "a.csv"
    table.write_text("source,model,images,F1\nA,B,160,0.5\nA,B,80,0.25\n")
    lines = published_lines(str(table))
    figure = draw_curves([run], images=True, published=lines)
    drawn = {line.get_label(): line.get_xydata().tolist() for line in figure.axes[0].lines}
    assert drawn["B (A)"] == [[80, 0.25], [160, 0.5]]
    write_csv(tmp_path / "out.csv", [run], lines)
    rows = [row for row in csv.DictReader((tmp_path / "out.csv").open()) if row["run"] == "B (A)"]
    assert [(row["images"], row["iteration"], row["value"]) for row in rows] == [
        ("80", "", "0.25"), ("160", "", "0.5")
    ]  # fmt: skip
    with pytest.raises(ConfigurationError, match="are of images seen: add --x images"):
        draw_curves([run], published=lines)


def test_runs_of_the_same_label_are_told_apart(tmp_path):
    run = read_log(str(write(tmp_path / "run", LINES)))
    with pytest.raises(ConfigurationError, match="several runs are called run; .*LABEL=RUN"):
        draw_curves([run, run])


def test_one_command_writes_figure_and_numbers(tmp_path, monkeypatch, capsys):
    folder = write(tmp_path / "run", LINES, batch_size=16)
    run_tool(monkeypatch, folder)
    written = {folder / f"curves.{ending}" for ending in ("png", "pdf", "csv")}
    assert set(map(Path, capsys.readouterr().out.split())) == written
    rows = list(csv.DictReader((folder / "curves.csv").open()))
    second = {"run": "run", "key": "total_loss", "iteration": "39", "images": "624", "value": "2.0"}
    assert second in rows
    # 3 values of 3 keys, and a score.
    assert len(rows) == 10
    other = write(tmp_path / "other", LINES[:3])
    monkeypatch.chdir(tmp_path)
    arguments = ("--x", "images", "--published", "pathfinder_14:crbp")
    run_tool(monkeypatch, f"A={folder}", other, *arguments, "--output", "figures")
    assert {path.name for path in (tmp_path / "figures").iterdir()} == {
        "curves.png", "curves.pdf", "curves.csv"
    }  # fmt: skip
    rows = list(csv.DictReader((tmp_path / "figures" / "curves.csv").open()))
    assert {row["run"] for row in rows} == {"A", "other", "crbp (Linsley et al. 2020)"}


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ((), "config.yaml; give the OUTPUT_DIR"),
        (("config.yaml",), "metrics.json; give the OUTPUT_DIR"),
        (("metrics.json",), "config.yaml; give the OUTPUT_DIR"),
        (("metrics.json", "config.yaml"), "nothing has been logged yet"),
    ],
)
def test_other_folders_are_named(files, message, tmp_path, monkeypatch, capsys):
    folder = tmp_path / "absent"
    for name in files:
        folder.mkdir(exist_ok=True)
        (folder / name).touch()
    with pytest.raises(SystemExit) as end:
        run_tool(monkeypatch, folder)
    error = capsys.readouterr().err
    assert end.value.code == 2 and message in error and str(folder) in error
    assert not (folder / "curves.csv").exists()
