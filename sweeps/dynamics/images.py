"""What trainings on images have found, by read-out."""

import numpy as np

from sweeps.dynamics.findings import Findings, Measured, mean_of

NAMES = {
    "other_noise_accuracy": "accuracy, noise patch redrawn",
    "val_accuracy": "accuracy, new images",
    "own_noise_accuracy": "accuracy, as trained",
    "gain_own_noise": "gain, its own noise patches",
    "gain_other_noise": "gain, new noise patches",
    "gain_own_image": "gain, its own images",
    "gain_other_image": "gain, new images",
    "probe_accuracy": "probe of the hidden units",
    "untrained_probe_accuracy": "probe, untrained",
}
"""Metric -> what it is. Gain is what a denoiser lowers the squared error of saying that there is no noise, as a share
of it."""


def measured(found: Findings, objective: str, metric: str) -> list[tuple[float, Measured]]:
    """(n SNR^2, the metric) of an objective, over seeds; empty where it has none."""
    by_snr: dict[float, list[float]] = {}
    for trial in found.image_trials:
        if trial.cell.objective == objective and metric in trial.last.metrics:
            by_snr.setdefault(trial.cell.relative_snr, []).append(trial.last.metrics[metric])
    return [(snr, mean_of(np.array(values))) for snr, values in sorted(by_snr.items())]


def image_header(found: Findings) -> tuple[str, ...]:
    assert found.images
    return ("", "n SNR^2 =", *(f"{snr:g}" for snr in found.images.relative_snrs))


def image_lines(found: Findings) -> list[tuple[str, ...]]:
    """A line a read-out of an objective, in percent, under image_header()."""
    assert found.images
    lines = []
    for objective in found.images.trained:
        for metric, name in NAMES.items():
            by_snr = dict(measured(found, objective, metric))
            if by_snr:
                places = 2 if metric.startswith("gain") else 1
                numbers = (by_snr.get(snr) for snr in found.images.relative_snrs)
                lines.append((objective, name, *(percent(one, places) for one in numbers)))
    return lines


def percent(one: Measured | None, places: int) -> str:
    return f"{100 * one.mean:.{places}f} +- {100 * one.stderr:.{places}f}" if one else ""
