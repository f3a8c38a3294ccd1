import optuna
import pytest
from optuna.trial import TrialState

from sweeps.search.axes import OptunaAxes, as_values
from sweeps.search.halving import HalvingSearch
from tests.tasks import ToyCell, ToyTask, play

AXES = OptunaAxes(ToyTask().axes)


@pytest.mark.parametrize("cell", ToyTask.cells, ids=str)
def test_params_give_back_the_cell(cell):
    study = optuna.create_study()
    study.enqueue_trial(AXES.params(cell))
    _, values = AXES.ask(study)
    assert ToyCell(**values) == cell


def test_a_size_is_an_axis_of_its_own_head_alone():
    search = HalvingSearch(ToyTask(), 1000)
    play(search)
    trials = search.study.get_trials(states=[TrialState.COMPLETE, TrialState.PRUNED])
    for one, trial in zip(search.trials, trials, strict=True):
        assert ("attention size" in trial.params) == (trial.params["head"] == "attention")
        assert AXES.params(one.cell) == trial.params


def test_neighbours_are_near_and_kinds_are_not_ordered():
    def point(*cell):
        return AXES.point(as_values(ToyCell(*cell)))

    here = point(1, 0, 1, "linear")
    assert point(2, 0, 1, "linear") == [here[0] + 1 / 4, *here[1:]]
    assert point(1, 100, 1, "linear") == [here[0], here[1] + 2 / 3, *here[2:]]
    assert {point(2, 0, 2, head)[3] for head in ("linear", "attention-1", "attention-2")} == {0, 1, 2}
