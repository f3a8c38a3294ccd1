import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge

from ddae.fusion import gram, leave_one_out, members_of, name_of, select, worthwhile
from ddae.heads import FUSIONS, expand, find_head, restore
from ddae.heads.linear import fit_ridge
from ddae.heads.parts import Joined, split
from ddae.heads.stacked import out_of_sample
from ddae.probe import classify, fit_probe
from ddae.scaling import Standardise
from ddae.streaming import Streamed

pytestmark = pytest.mark.usefixtures("one_thread")

NAMES = expand(FUSIONS, FUSIONS)
CHANNELS = (4, 6)


def halves(num_images, seed=0, grid=2, signal=1.5):
    """Two blocks of 4 and 6 channels, side by side: the first tells class 0 from the others, the second 1 from 2."""
    rng = torch.Generator().manual_seed(seed)
    labels = torch.arange(num_images) % 3
    maps = torch.randn(num_images, 10, grid, grid, generator=rng)
    maps[labels == 0, 0] += signal
    maps[labels == 1, 4] += signal
    maps[labels == 2, 5] += signal
    return maps, labels


def streamed(maps, memory_bytes=2**14):
    rows = [part.flatten(1).half().numpy() for part in split(maps, CHANNELS)]
    grid = maps.shape[-1]
    return Joined(
        [Streamed([r[:100], r[100:]], c, grid, memory_bytes=memory_bytes) for r, c in zip(rows, CHANNELS, strict=True)]
    )


@pytest.mark.parametrize("name", NAMES)
def test_every_fusion_finds_what_neither_block_has_alone(name):
    train, val = halves(600), halves(600, seed=1)
    fused = fit_probe(name, train, val, 3, seed=0, channels=CHANNELS).correct.mean()
    alone = [
        fit_probe("linear", (split(train[0], CHANNELS)[i], train[1]), (split(val[0], CHANNELS)[i], val[1]), 3, seed=0)
        for i in (0, 1)
    ]
    assert fused > max(each.correct.mean() for each in alone) + 0.04
    shuffled = train[1][torch.randperm(600, generator=torch.Generator().manual_seed(0))]
    assert fit_probe(name, (train[0], shuffled), val, 3, seed=0, channels=CHANNELS).correct.mean() < 0.45


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name == "attentive-8")) for name in NAMES]
)
def test_streamed_blocks_are_fitted_as_held_ones(name):
    (maps, labels), val = halves(300), halves(300, seed=1)
    maps, asked = maps.half().float(), val[0].half().float()
    held = fit_probe(name, (maps, labels), (asked, val[1]), 3, seed=0, channels=CHANNELS)
    read = fit_probe(name, (streamed(maps), labels), (streamed(asked), val[1]), 3, seed=0, channels=CHANNELS)
    if name in ("joint", "joint-ridge", "stacked"):
        torch.testing.assert_close(held.head(asked), read.head(asked), atol=2e-3, rtol=1e-3)
    assert abs(held.correct.mean() - read.correct.mean()) < 0.05


def test_joined_blocks_keep_the_rows_of_an_image_together():
    maps = torch.arange(250.0)[:, None, None, None].expand(250, 10, 2, 2).contiguous()
    joined = streamed(maps)
    assert joined.rows_at_once < 250
    assert torch.equal(torch.cat(list(joined.blocks())), maps)
    rng, first = torch.Generator().manual_seed(3), torch.Generator().manual_seed(3)
    seen = list(joined.shuffled(16, rng, 0))
    numbers = torch.cat([rows for rows, _ in seen])
    assert len(set(numbers.tolist())) == len(numbers) == 240
    for rows, each in seen:
        assert torch.equal(each, maps[rows])
    list(joined.streams[0].shuffled(16, first, 0))
    assert torch.equal(rng.get_state(), first.get_state())
    assert [rows.tolist() for rows, _ in joined.shuffled(16, torch.Generator().manual_seed(3), 5)] == [
        rows.tolist() for rows, _ in seen[5:]
    ]


@pytest.mark.parametrize("name", NAMES)
def test_every_setting_survives_as_tensors(name):
    (maps, labels), (asked, _) = halves(90), halves(20, seed=1)
    head, sizes = find_head(name, CHANNELS)
    fitted = head.fit(maps, labels, 3, 0, *sizes)
    for scores, setting in zip(fitted(asked), fitted.settings, strict=True):
        tensors = {key: value.clone().contiguous() for key, value in fitted.only(setting).state_dict().items()}
        again = restore(name, tuple(maps.shape), 3, tensors, setting, CHANNELS)
        torch.testing.assert_close(again(asked)[0], scores)


def test_the_average_leaves_out_a_block_that_says_nothing():
    maps, labels = halves(300)
    noise = torch.randn(300, 40, 2, 2, generator=torch.Generator().manual_seed(5))
    head, sizes = find_head("average", (4, 6, 40))
    first, second, last = head.fit(torch.cat([maps, noise], 1), labels, 3, 0, *sizes).weights
    assert min(first, second) > 0.2 and last == 0


def test_a_fusion_needs_blocks():
    with pytest.raises(ValueError, match="head='joint' is not known"):
        find_head("joint")
    assert find_head("mlp-8", CHANNELS) == find_head("mlp-8")


def test_a_wide_block_of_noise_counts_no_more_than_a_narrow_one():
    (narrow, labels), (asked, truth) = halves(200), halves(600, seed=1)
    rng = torch.Generator().manual_seed(5)
    wide, wide_asked = torch.randn(200, 400, 2, 2, generator=rng), torch.randn(600, 400, 2, 2, generator=rng)
    data = (torch.cat([narrow, wide], 1), labels), (torch.cat([asked, wide_asked], 1), truth)
    plain = fit_probe("ridge", *data, 3, seed=0).correct.mean()
    balanced = fit_probe("joint-ridge", *data, 3, seed=0, channels=(10, 400)).correct.mean()
    assert balanced > plain + 0.05


@pytest.mark.parametrize("penalty", [1e-3, 0.1])
@pytest.mark.parametrize(("num_images", "width"), [(40, 3), (40, 60)])
def test_leave_one_out_is_what_fitting_without_each_image_gives(num_images, width, penalty):
    rng = torch.Generator().manual_seed(0)
    labels = torch.randint(3, (num_images,), generator=rng)
    x = torch.randn(num_images, width, generator=rng).double()
    x -= x.mean(0)
    expected = []
    for left_out in range(num_images):
        rest = np.arange(num_images) != left_out
        ridge = Ridge(alpha=penalty * num_images).fit(x[rest], np.eye(3)[labels[rest]])
        expected.append(ridge.predict(x[left_out : left_out + 1])[0])
    found = leave_one_out(x @ x.T, labels, 3, penalty)
    torch.testing.assert_close(found, torch.from_numpy(np.array(expected)), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("width", [3, 40])
def test_out_of_sample_predictions_are_those_of_fits_without_each_image(width):
    rng = torch.Generator().manual_seed(0)
    labels = torch.arange(60) % 3
    maps = torch.randn(60, width, 1, 1, generator=rng)
    maps[torch.arange(60), labels] += 1
    weight, found = out_of_sample(maps, labels, 3)
    head = fit_ridge(maps, labels, 3, 0)
    number = int(np.argmin([(weight - head.weight[:, s]).abs().max() for s in range(len(head.settings))]))
    torch.testing.assert_close(weight, head.weight[:, number], atol=1e-5, rtol=1e-4)
    x = Standardise(maps)(maps).flatten(1).double().numpy()
    penalty = float(head.settings[number].removeprefix("penalty="))
    for left_out in range(0, 60, 7):
        rest = np.arange(60) != left_out
        ridge = Ridge(alpha=penalty * 60).fit(x[rest], np.eye(3)[labels[rest]])
        expected = torch.from_numpy(ridge.predict(x[left_out : left_out + 1])[0]).float()
        torch.testing.assert_close(found[left_out], expected, atol=1e-3, rtol=1e-3)


def test_selection_takes_what_adds_and_leaves_a_copy_and_noise():
    maps, labels = halves(600)
    first, second = split(maps, CHANNELS)
    noise = torch.randn(600, 8, 2, 2, generator=torch.Generator().manual_seed(9))
    grams = {name: gram(x) for name, x in {"noise": noise, "first": first, "copy": first + 0, "second": second}.items()}
    steps = select(grams, labels, 3, most=4)
    assert {step.name for step in steps[:2]} in ({"first", "second"}, {"copy", "second"})
    assert len(steps) == 4
    assert worthwhile(steps) == 2
    assert [step.name for step in select(grams, labels, 3, most=4, num_best=2)] == [step.name for step in steps[:2]]
    assert steps[1].gain > steps[1].stderr > 0
    assert steps[1].correct.mean() == pytest.approx(steps[0].gain + steps[1].gain)
    held_out = halves(600, seed=1)
    [right] = classify(fit_ridge(maps, labels, 3, 0).only("penalty=0.1"), held_out[0], 3) == held_out[1]
    assert steps[1].correct.mean() == pytest.approx(right.float().mean().item(), abs=0.05)
    alone = select(grams, labels, 3, most=4, may_join=lambda joined, name: not joined)
    assert len(alone) == 1


def test_selection_counts_images_by_their_weights():
    rng = torch.Generator().manual_seed(0)
    labels = (torch.arange(400) % 10 == 0).long() * 2 + (torch.arange(400) % 2)
    often, seldom = ((labels % 2).float(), (labels > 1).float())  # what tells the halves apart, what the rare ones
    grams = {
        name: gram((8 * truth + torch.randn(400, generator=rng))[:, None, None, None] + torch.zeros(1, 3, 1, 1))
        for name, truth in {"often": often, "seldom": seldom}.items()
    }
    weights = (1 / torch.bincount(labels).float())[labels].numpy()
    weights /= weights.mean()
    plain, balanced = select(grams, labels, 4, most=1), select(grams, labels, 4, most=1, weights=weights)
    assert plain[0].name == "often" and plain[0].gain == pytest.approx(0.9, abs=0.02)
    assert balanced[0].gain == pytest.approx(2 / 3, abs=0.05)
    assert balanced[0].correct.mean() == pytest.approx(balanced[0].gain)
    expected = {name: select({name: each}, labels, 4, 1, weights=weights)[0].gain for name, each in grams.items()}
    assert balanced[0].name == max(expected, key=lambda name: expected[name])


def test_a_gram_counts_a_wide_feature_no_more_than_a_narrow_one():
    for width in (2, 40):
        assert gram(torch.randn(50, width, 1, 1)).diagonal().mean().item() == pytest.approx(1, abs=1e-4)


def test_members_have_a_name():
    members = (("up.1.0", 30), ("down_blocks.0.resnets.1", 5), ("mid", 30))
    assert name_of(members) == "up.1.0+mid@30,down_blocks.0.resnets.1@5"
    assert set(members_of(name_of(members))) == set(members)
    for wrong in ("up.1.0", "up.1.0@", "up.1.0@30+", "a@b", "a@1,", "+a@1", "a+a@1", "a@1,a@1"):
        with pytest.raises(ValueError, match="names no features"):
            members_of(wrong)
