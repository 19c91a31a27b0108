"""Where states go after the step a circuit was trained for: principal components, and a test.

Method of Figs. S3 and S4 of Linsley et al. 2020: states are averaged over space, the components are
fitted on the steps up to the trained one, and later steps are projected on them.

Shape shorthand: M samples of the circuit over all images, T steps, C channels of the state, K
principal components.
"""

from __future__ import annotations

import io
import itertools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.stats import gaussian_kde, ks_2samp

from crbp_d2.analysis.figures import COLOURS, new_figure, save_figure, styled
from crbp_d2.analysis.observed import observe_circuit
from crbp_d2.analysis.outputs import Batch
from crbp_d2.core import ConfigurationError
from crbp_d2.data.storage import write_json, write_whole

GRID = 120
"""Points of the densities along each component."""
LEVELS = np.array([0.05, 0.25, 0.5, 0.75])
"""Densities that are drawn, in parts of the largest."""

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class StateSpace:
    """The states of one run on principal components.

    Attributes:
        trained_steps: `N`.
        projected: `(M, T, K)`, on the first components of the steps up to `N`.
        explained: fraction of the variance of those steps that each component has, `(K,)`.
        distance: `(M,)`, Euclidean, of the averaged states at `N` and at the last step, as a
            fraction of the norm of the one at `N`.
        mean_square: `(M,)`, the published distance: the mean over the components of the squared
            difference between the projections of those two states. It has the unit of the state,
            squared.
    """

    trained_steps: int
    projected: Floats
    explained: Floats
    distance: Floats
    mean_square: Floats


def collect_states(model: Any, batches: Iterable[Batch], *, steps: int, samples: int) -> Floats:
    """Globally averaged states at the steps `1..T` of the first samples, `(M, T, C)`.

    Memory: `4 M T C` bytes, whatever the size of the images; 1,000 images of 25 channels over 80
    steps take 8 MB.

    Args:
        model: with one recurrence, in evaluation mode.
        batches: what the model takes; as many are read as `samples` needs.
        steps: `T`.
        samples: the most to collect, `M`; fewer if the data end before.

    Raises:
        ValueError: there is no sample, as no image was given or nothing was detected.
    """
    collected: list[Floats] = []
    found = 0
    for batch in batches:
        pooled = observe_circuit(model, batch, [steps]).pooled[:, : samples - found]
        if pooled.shape[1]:
            collected.append(pooled.transpose(0, 1).float().numpy())
            found += pooled.shape[1]
        if found >= samples:
            break
    if not found:
        raise ValueError("no sample: no image was given, or nothing was detected in the images")
    return np.concatenate(collected)


def project(states: Floats, trained_steps: int, components: int = 2) -> StateSpace:
    """Principal components of the steps `1..N`, and all steps on them.

    Args:
        states: `(M, T, C)`, of `collect_states`.
        trained_steps: `N`, at most `T`.
        components: `K`, from 2, which are drawn, to `C`. How many the published distance is of is
            not said.

    Raises:
        ConfigurationError: there are fewer steps than `N`, fewer channels or states than `K`, or
            scikit-learn is not installed.
    """
    try:
        from sklearn.decomposition import PCA
    except ImportError as error:
        raise ConfigurationError(
            "the state space needs scikit-learn: pip install scikit-learn"
        ) from error
    samples, steps, channels = states.shape
    if steps < trained_steps:
        raise ConfigurationError(f"{steps} steps do not reach the trained {trained_steps}")
    fitted = states[:, :trained_steps].reshape(-1, channels)
    if not 2 <= components <= min(fitted.shape):
        raise ConfigurationError(
            f"{components} components: {len(fitted)} states of {channels} channels up to step "
            f"{trained_steps} have 2 to {min(fitted.shape)}"
        )
    pca = PCA(n_components=components, svd_solver="full").fit(fitted)
    projected = pca.transform(states.reshape(-1, channels)).reshape(samples, steps, components)
    at_trained, at_last = states[:, trained_steps - 1], states[:, -1]
    size = np.linalg.norm(at_trained, axis=1)
    moved = projected[:, -1] - projected[:, trained_steps - 1]
    return StateSpace(
        trained_steps=trained_steps,
        projected=projected.astype(np.float32),
        explained=pca.explained_variance_ratio_.astype(np.float32),
        distance=np.linalg.norm(at_last - at_trained, axis=1)
        / np.maximum(size, np.finfo(np.float32).tiny),
        mean_square=np.mean(np.square(moved), axis=1),
    )


def compare_distances(one: Floats, other: Floats) -> dict[str, float]:
    """Two-sample Kolmogorov-Smirnov test of two runs' distances.

    Args:
        one: `(M,)`.
        other: `(M',)`.

    Returns:
        `statistic`, the largest difference of the two distribution functions, which is also the
        effect size, in 0..1; `p`; `median_ratio` of the first to the second; `n_first`, `n_second`.
    """
    test = ks_2samp(one, other)
    return {
        "statistic": float(test.statistic),
        "p": float(test.pvalue),
        "median_ratio": float(np.median(one) / max(np.median(other), np.finfo(np.float32).tiny)),
        "n_first": len(one),
        "n_second": len(other),
    }


@styled()
def write_figure(path: Path, spaces: Mapping[str, StateSpace]) -> None:
    """A panel a run, 2D histogram of all states, densities up to `N` and beyond, one trajectory;
    and one for the distribution of each distance.

    Args:
        path: without ending; see `save_figure`.
        spaces: label -> its states.
    """
    figure, panels = new_figure(1, len(spaces) + 2)
    for panel, (label, space) in zip(panels, spaces.items(), strict=False):
        _draw(panel, label, space)
    relative, published = panels[-2:]
    _draw_distances(relative, {label: space.distance for label, space in spaces.items()})
    relative.set(xlabel="from step N to the last, $|h_T-h_N|/|h_N|$")
    _draw_distances(published, {label: space.mean_square for label, space in spaces.items()})
    published.set(xlabel="the same, mean square of the components", xscale="log")
    relative.legend(loc="center")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels))
    save_figure(figure, path)


def _draw_distances(panel: Any, distances: Mapping[str, Floats]) -> None:
    for index, (label, values) in enumerate(distances.items()):
        height = np.arange(1, len(values) + 1) / len(values)
        panel.plot(np.sort(values), height, color=COLOURS[index], label=label)
    panel.set(ylabel="fraction of samples", ylim=(0, 1))


def _draw(panel: Any, label: str, space: StateSpace) -> None:
    trained, drawn = space.trained_steps, space.projected[..., :2]
    everything = drawn.reshape(-1, 2)
    panel.hist2d(*everything.T, bins=60, cmap="Greys", norm="log", zorder=0)
    low, high = np.quantile(everything, [0.001, 0.999], axis=0)
    margin = 0.1 * (high - low) + 1e-6
    low, high = low - margin, high + margin
    grid = np.stack(np.meshgrid(*(np.linspace(low[i], high[i], GRID) for i in range(2))))
    late = drawn[:, trained:] if drawn.shape[1] > trained else None
    parts = [("up to N", drawn[:, :trained], COLOURS[0])]
    parts += [] if late is None else [("after N", late, COLOURS[1])]
    for name, states, colour in parts:
        density = _density(states.reshape(-1, 2), grid)
        if density is not None:
            panel.contour(
                *grid, density, levels=LEVELS * density.max(), colors=colour, linewidths=0.8
            )
        panel.plot([], [], color=colour, label=name)
    path = drawn[0]
    panel.plot(
        *path.T, color=COLOURS[2], marker=".", markersize=3, linewidth=0.8, label="one image"
    )
    panel.plot(*path[trained - 1], color=COLOURS[6], marker="*", markersize=9, label="its step N")
    share = [f"component {i + 1} ({100 * space.explained[i]:.0f} % of variance)" for i in range(2)]
    panel.set(title=label, xlabel=share[0], ylabel=share[1])
    panel.set(xlim=(low[0], high[0]), ylim=(low[1], high[1]))


def _density(states: Floats, grid: npt.NDArray[np.float64]) -> npt.NDArray[np.float64] | None:
    """Of at most 2,000 states drawn at random; `None` where they lie on a line or in a point."""
    chosen = np.random.default_rng(0).permutation(len(states))[:2000]
    try:
        estimate = gaussian_kde(states[chosen].T)
    except np.linalg.LinAlgError:
        return None
    return np.asarray(estimate(grid.reshape(2, -1))).reshape(grid.shape[1:])


Tests = dict[str, dict[str, float]]
"""`<label> - <label>` -> `compare_distances` of these runs, for every two of them."""


def write_results(folder: Path, spaces: Mapping[str, StateSpace]) -> tuple[Tests, Tests]:
    """Write `state_space.png`, `.pdf`, `.json` (distances, tests) and `.npz` (projections).

    Args:
        folder: made if missing.
        spaces: label -> its states.

    Returns:
        The tests of `StateSpace.distance`, and those of `StateSpace.mean_square`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    relative = _tests({label: space.distance for label, space in spaces.items()})
    published = _tests({label: space.mean_square for label, space in spaces.items()})
    write_figure(folder / "state_space", spaces)
    write_json(
        folder / "state_space.json",
        {
            "runs": {label: _numbers(space) for label, space in spaces.items()},
            "kolmogorov_smirnov": relative,
            "kolmogorov_smirnov_mean_square": published,
        },
    )
    content = io.BytesIO()
    np.savez_compressed(content, **{label: space.projected for label, space in spaces.items()})
    write_whole(folder / "state_space.npz", content.getvalue())
    return relative, published


def _tests(distances: Mapping[str, Floats]) -> Tests:
    return {
        f"{one} - {other}": compare_distances(distances[one], distances[other])
        for one, other in itertools.combinations(distances, 2)
    }


def _numbers(space: StateSpace) -> dict[str, Any]:
    return {
        "trained_steps": space.trained_steps,
        "steps": space.projected.shape[1],
        "explained_variance": space.explained.tolist(),
        "median_distance": float(np.median(space.distance)),
        "distance": space.distance.tolist(),
        "median_mean_square": float(np.median(space.mean_square)),
        "mean_square": space.mean_square.tolist(),
    }
