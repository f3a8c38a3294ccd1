"""One process, as a notebook is, that starts Ray more than once."""

import os

import pytest
import ray

from sweeps.cluster.session import ray_session


@ray.remote
def asked_for_a_token() -> bool:
    return os.environ.get("RAY_AUTH_MODE") == "token"


@pytest.mark.slow
def test_private_ones_ask_for_their_own_token_and_a_cluster_for_none(fork, monkeypatch):
    private, tokens = [], set()
    for _ in range(2):
        with ray_session():
            private.append(ray.get(asked_for_a_token.remote()))
            tokens.add(os.environ["RAY_AUTH_TOKEN"])
    assert private == [True, True] and len(tokens) == 2
    monkeypatch.setenv("RAY_ADDRESS", fork.keywords["RAY_ADDRESS"])
    with ray_session():
        assert not ray.get(asked_for_a_token.remote())
