"""The atlas: what goes into it, what comes out of it, and where a sweep begins because of it."""

import getpass
import json
from dataclasses import replace

import numpy as np
import pytest

from ddae.probe import standard_error
from sweeps.atlas import Atlas, main
from sweeps.findings import atlas
from sweeps.findings.answer import Answer
from sweeps.layer_noise import LayerNoise
from sweeps.probing.atlas import advise, entry_of, warm_start
from sweeps.probing.plan import rules_for, set_up_search, sweep_folder
from sweeps.probing.screening import Screening, ScreeningRules, best_timesteps
from sweeps.search.task import Result, Trial


@pytest.fixture(scope="module")
def task(tiny_model, tmp_path_factory):
    store = str(tmp_path_factory.mktemp("store"))
    config = LayerNoise(tiny_model, "digits", timesteps=(0, 11, 100, 300, 600, 900), heads=("ridge",), store=store)
    return set_up_search(config).task


def entry(task, best=("up.1.0", 300), dataset="another", **changes):
    """A sweep of the task's network on another dataset, whose best site is this one."""
    space, rng = task.space, np.random.default_rng(0)
    first = {t: {name: rng.random(200) < 0.4 for name in space.block_names} for t in space.timesteps}
    block, timestep = best
    last = {timestep: {block: np.arange(400) < 300}}
    screening = Screening(ScreeningRules((200, 400)), space, (first, last), {timestep: (block,)})
    cell = next(cell for cell in space.cells if (cell.block, cell.timestep) == best)
    result = Result({"val_accuracy": 0.8, "val_stderr": 0.02}, {"setting": "1"}, 0, 1)
    trial = Trial(cell, {1000: result}, "finished")
    made = entry_of("layer-noise-1a2b3c4d", task, screening, Answer(trial, trial, trial, (trial,), 1), None)
    return replace(made, dataset_fingerprint=dataset, **changes)


def elsewhere(*args, **changes):
    """An entry of a dataset without a public name."""
    return replace(entry(*args, **changes), dataset="")


def test_an_entry_ranks_sites_by_how_long_they_stayed(task):
    made = entry(task)
    first, second, *_ = made.sites
    assert (first.block, first.timestep, first.num_images) == ("up.1.0", 300, 400)
    assert first.accuracy == 0.75 and first.stderr == pytest.approx(standard_error(0.75, 400), abs=1e-6)
    assert second.num_images == 200 and len(made.sites) == len(task.space.blocks) * 6
    assert made.answer.block == "up.1.0" and made.num_classes == 10 and made.dataset == "digits"


def test_a_file_says_nothing_of_who_made_it_or_where(task, tmp_path):
    path = atlas.write(tmp_path / "atlas", entry(task))
    text = path.read_text()
    for private in (str(tmp_path), task.source.backbone, task.source.store, getpass.getuser(), "/"):
        assert private not in text
    assert atlas.read(tmp_path / "atlas") == [entry(task)]
    elsewhere = replace(task, source=replace(task.source, dataset=str(tmp_path / "patients")))
    assert entry(elsewhere).dataset == ""


def test_a_sweep_that_goes_on_replaces_its_own_entry(task, tmp_path):
    before = atlas.write(tmp_path, entry(task))
    assert atlas.write(tmp_path, entry(task)) == before
    after = atlas.write(tmp_path, replace(entry(task), raw_pixels=0.5))
    other = atlas.write(tmp_path, entry(task, dataset="third"))
    assert {path.name for path in tmp_path.iterdir()} == {after.name, other.name} != {before.name, other.name}


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda text: text[:-40], "JSONDecodeError"),
        (lambda text: text.replace('"accuracy": 0.8', '"accuracy": 0.9'), "it was changed, or cut off"),
        (lambda text: text.replace('"num_train": ', '"num_train": "many", "was": '), "num_train='many'"),
        (lambda text: text.replace('"format": 1', '"format": 2'), "format 2, where 1 is known"),
        (lambda text: '{"name": "something else"}', "KeyError"),
        (lambda text: "[]", "TypeError"),
        (lambda text: "[" * 100_000, "is no entry of an atlas"),
        (lambda text: text.replace('"num_train": ', '"num_train": false, "was": '), "num_train=False"),
        (lambda text: " " * 2**24 + text, "it has more than 16,777,216 bytes"),
        (lambda text: "\udcff", "UnicodeDecodeError"),
    ],
)
def test_what_is_damaged_or_foreign_is_named_and_skipped(task, tmp_path, caplog, damage, said):
    good, bad = atlas.write(tmp_path, entry(task)), atlas.write(tmp_path, entry(task, dataset="third"))
    bad.write_bytes(damage(bad.read_text()).encode("utf-8", "surrogateescape"))
    assert atlas.read(tmp_path) == [atlas.parse(good)]
    [line] = caplog.messages
    assert said in line and str(bad) in line and "\n" not in line


def test_atlases_merge_and_are_listed(task, tmp_path, capsys):
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    atlas.write(ours, entry(task))
    atlas.write(theirs, entry(task))
    atlas.write(theirs, entry(task, dataset="third"))
    main(Atlas(ours, (theirs,)))
    said = capsys.readouterr().out
    assert "2 in" in said and "1 of them new" in said and "80.0 +- 2.0" in said
    assert (tmp_path / "atlas.png").stat().st_size > 1000
    main(Atlas(ours, (theirs,)))
    assert "0 of them new" in capsys.readouterr().out


def test_what_pixels_reach_is_kept_by_a_sweep_that_has_not_measured_it(task, tmp_path):
    atlas.write(tmp_path, entry(task, raw_pixels=0.7))
    atlas.write(tmp_path, entry(task, ("mid", 900)))
    [kept] = atlas.read(tmp_path)
    assert kept.raw_pixels == 0.7 and kept.answer.block == "mid"


def test_a_sweep_begins_at_the_sites_that_won_for_the_same_network(task):
    strangers = [
        elsewhere(task, ("mid", 0), "x", backbone_sha256="other"),
        elsewhere(task, ("mid", 0), "y", backbone_sha256="z"),
    ]
    own = elsewhere(task, ("mid", 900), dataset=task.source.images)
    found = advise(task, [own, *strangers, elsewhere(task, ("up.1.0", 300))])
    assert task.space.ranked(found.ranking)[0] == ("up.1.0", 300) and "1 other sweep of this network" in found.said
    assert [(cell.block, cell.timestep) for cell in found.cells] == [("up.1.0", 300)]
    rules = rules_for(LayerNoise(), task, warm=True)
    usual = rules_for(LayerNoise(), task)
    assert rules.rounds == usual.rounds[1:] and rules.num_kept(rules.first_cut - 1, 6) == usual.num_kept(1, 6) == 2
    assert 300 in best_timesteps(task.space, rules, found.ranking)


def test_a_network_of_the_same_class_is_matched_by_noise_and_depth(task):
    theirs = elsewhere(task, ("up.1.0", 300), backbone_sha256="other")
    renamed = tuple(replace(site, block=f"their.{site.block}", timestep=site.timestep // 10) for site in theirs.sites)
    found = advise(
        task, [replace(theirs, sites=renamed), elsewhere(task, ("mid", 0), backbone_sha256="z", family="DiT")]
    )
    assert task.space.ranked(found.ranking)[0] == ("up.1.0", 300) and "of other networks of its class" in found.said
    assert advise(task, [elsewhere(task, family="DiT", backbone_sha256="z")]).ranking is None
    assert advise(task, [replace(theirs, backbone="random:tiny")]).ranking is None
    at_another_size = replace(theirs, dataset="digits")
    assert advise(task, [at_another_size]).ranking is None


def test_a_sweep_goes_on_from_where_it_began_however_the_atlas_grows(task, tmp_path):
    folder, its = tmp_path / "atlas", tmp_path / "sweep"
    its.mkdir()
    atlas.write(folder, elsewhere(task, ("up.1.0", 300)))
    began = warm_start(its, folder, task, keep=True)
    atlas.write(folder, elsewhere(task, ("mid", 0), dataset="third"))
    again = warm_start(its, folder, task, keep=True)
    assert np.array_equal(again.ranking, began.ranking) and again.cells == began.cells and again.said == began.said
    fresh = warm_start(tmp_path / "new", folder, task)
    assert not np.array_equal(fresh.ranking, began.ranking) and not (tmp_path / "new").exists()
    (its / "warm_start.json").write_text(json.dumps({"ranking": 1}))
    with pytest.raises(ValueError, match="is damaged; delete it, and the sweep begins anew"):
        warm_start(its, folder, task)


def test_where_it_begins_is_part_of_a_sweep(task, tmp_path):
    usual, warm = LayerNoise(), LayerNoise(warm_start=tmp_path / "atlas")
    assert len({sweep_folder(each, task) for each in (usual, warm, replace(warm, warm_start=tmp_path))}) == 3
