"""Heads that read a frozen feature: name -> fit."""

from ddae.heads.base import Head, StackedHead
from ddae.heads.linear import fit_linear, fit_ridge
from ddae.heads.mlp import fit_mlp

HEADS: dict[str, Head] = {
    "ridge": fit_ridge,
    "linear": fit_linear,
    "mlp": fit_mlp,
}

__all__ = ["HEADS", "Head", "StackedHead"]
