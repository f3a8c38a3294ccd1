"""Figures, and the page that holds them: arrays in, pictures and HTML out."""

from ddae.report.figures import (
    alignment_uniformity,
    confusion,
    cost_scatter,
    courses,
    heat_map,
    image_grid,
    paired_effects,
    pareto_front,
    pictures,
    score_scatter,
    shortened,
    similarity_map,
)
from ddae.report.page import Page, Section, Table, render, with_test
from ddae.report.training import accuracy_curves, loss_curve, trajectories

__all__ = [
    "Page",
    "Section",
    "Table",
    "accuracy_curves",
    "alignment_uniformity",
    "confusion",
    "cost_scatter",
    "courses",
    "heat_map",
    "image_grid",
    "loss_curve",
    "paired_effects",
    "pareto_front",
    "pictures",
    "render",
    "score_scatter",
    "shortened",
    "similarity_map",
    "trajectories",
    "with_test",
]
