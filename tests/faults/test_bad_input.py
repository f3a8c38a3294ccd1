"""A user's mistake is one line that names the value and what is allowed, a non-zero exit, and nothing written."""

import pytest

from sweeps import atlas, cli, label_free, layer_noise, noise_ablation, pretrain, similarity, transfer

CASES = [
    (["--blocks", "up.9"], "block='up.9' is not known; allowed: down.0.0,"),
    (["--heads", "linaer"], "head='linaer' is not known; allowed: ridge, linear,"),
    (["--heads", "cnn-64"], "head='cnn-64': cnn takes exactly 2 sizes, each from 1 to 1,048,576, as in cnn-64-64"),
    (["--heads", "attention", "--poolings", "1"], "head='attention-1' wants a pooling of 2 or more"),
    (["--heads", "linear", "cnn", "--poolings", "1", "2"], "head='cnn-64-64' wants a pooling of 4 or more"),
    (["--blocks", "mid", "up.2.0", "--poolings", "8"], "block='mid' is too small for all poolings and heads"),
    (["--keep", "0"], "keep=0.0 must lie above 0 and not above 1"),
    (
        ["--search", "grid", "--start", "label-free"],
        "start='label-free' cuts timesteps, and the grid keeps all of them",
    ),
    (["--finalists", "0"], "finalists=0 must be 1 or more"),
    (["--views", "0"], "views=0 must be 1 or more"),
    (["--poolings", "0"], "pooling=0 does not follow exactly"),
    (["--poolings", "3"], "pooling=3 does not follow exactly from a coarser grid; choose among 1, 2, 4, 8"),
    (["--seed", "-1"], "seed=-1 must be 0 or more"),
    (["--store", "s4://bucket/features"], "store='s4://bucket/features': Protocol not known: s4; give a folder, or an"),
    (["--store", "s3://me:hush@bucket/features"], "the s3 address of the store holds a password or a key"),
    (["--store", "/dev/null/store"], "/dev/null/store"),
    (["--poolings", "64"], "pooling=64 is larger than every chosen block's map; the largest is 16"),
    (["--timesteps", "1000"], "timestep=1000 is outside this model's schedule; allowed: 0 to 999"),
    (["--heads"], "--heads is empty"),
    (["--poolings"], "--poolings is empty"),
    (["--num-trials", "0"], "num_trials=0 must be 1 or more"),
    (
        ["--search-images", "0"],
        "search_images=0 must be 10 or more, as many as there are classes; auto chooses, and all",
    ),
    (["--search-images", "9"], "search_images=9 must be 10 or more, as many as there are classes"),
    (["--search-images", "-100"], "search_images=-100 must be 10 or more"),
    (["--search-images", "most"], "--search-images"),
    (["--search-images", "100", "--search", "grid"], "search_images=100 bounds a search, and the grid fits every cell"),
    (["--dataset", "nowhere"], "dataset='nowhere' is neither a known name nor a folder"),
    (["--backbone", "nowhere"], "backbone='nowhere' is neither a folder or file here nor a model that the hub gives"),
    (["--config", "nowhere.yaml"], "--config nowhere.yaml cannot be read"),
    (["--device", "cuda:99"], "device='cuda:99' is not available"),
    (["--out", "/dev/null/out"], "not a directory; allow it, or name other folders with --out"),
    (["--out", "/proc/out"], "/proc/out"),
    (["--out", "/sys"], "/sys/layer-noise-"),
    (["--store", "/sys/store"], "/sys/store: "),
    (["--store", "/proc"], "allow it, or name other folders with --out and --store"),
    (["--blokcs", "mid"], "'--blokcs' is no flag, and no flag takes it; --help lists them; did you mean '--blocks'?"),
    (["stray"], "'stray' is no flag"),
    (["--seed", "1", "2"], "'2' is no flag, and no flag takes it"),
    (["--seed", "x"], "Error parsing --seed: invalid literal for int() with base 10: 'x'; --help explains every flag"),
    (
        ["--search", "bayes"],
        "invalid choice 'bayes' for argument '--search'. Expected one of ('optuna', 'random', 'grid')",
    ),
    (["--keep"], "Missing value for argument '--keep'"),
    (["--keep", "nan"], "keep=nan must lie above 0"),
    (["--blocks", "mdi"], "did you mean 'mid'?"),
    (["--heads", "mlp-99999999999999999999"], "mlp takes 1 or more sizes, each from 1 to 1,048,576, as in mlp-256"),
    (["--heads", "mlp-0"], "head='mlp-0': mlp takes 1 or more sizes, each from 1 to 1,048,576"),
    (["--timesteps", "-1"], "timestep=-1 is outside this model's schedule; allowed: 0 to 999"),
    (["--seed", str(2**32)], "seed=4294967296 must be 0 or more, and 4,294,967,295 at most"),
    (["--data-seed", str(2**64)], "data_seed=18446744073709551616 must be 0 or more, and 4,294"),
    (["--views", str(10**9)], "views=1000000000 must be 1 or more, and 1000 at most"),
    (["--image-size", "100000"], "image_size=100000 must be 0 or more, and 4,096 at most"),
    (["--num-steps", "1"], "num_steps=1 must be 2 or more"),
    (["--gpus-per-extractor", "2"], "gpus_per_extractor=2.0 must be 0.01 or more, and 1 at most"),
    (["--gpus-per-fit", "0.6"], "gpus_per_fit=0.6 must be 0 or more, and 0.5 at most"),
    (["--memory", "4"], "memory='4' is no size; give a number with MB, GB or TB, such as 4GB"),
    (["--memory", "-1GB"], "memory="),
    (["--memory", "0GB"], "memory='0GB' is no size"),
    (["--memory", "1MB"], "MB and may have 1 MB: raise --memory, or take smaller poolings or heads"),
    (["--memory", "9000TB"], "memory='9000TB' is more than the "),
    (["--num-trials", "-1"], "num_trials=-1 must be 1 or more"),
    (["--round-size", "0"], "round_size=0 must be 1 or more"),
    (["--device", "meta"], "device='meta' is not available"),
    (["--text-embedding", "none"], "text_embedding='none' is no file"),
    (["--dataset", "../nowhere"], "dataset='../nowhere' is neither a known name nor a folder"),
    (["--dataset", "digist"], "did you mean 'digits'?"),
    (["--dataset", "lab/../../digits"], "dataset='lab/../../digits' is neither"),
    (["--backbone", "../nowhere"], "backbone='../nowhere' is neither a folder or file here"),
    (["--backbone", "ddpm-fashion-mnits"], "did you mean 'ddpm-fashion-mnist'?"),
    (["--backbone", "a b/c@../.."], "backbone='a b/c@../..' is neither"),
    (["--dataset", ""], "--dataset is empty; give a value, or leave it out"),
    (["--backbone="], "--backbone is empty; give a value, or leave it out"),
    (["--store", ""], "--store is empty"),
    (["--data-root", ""], "--data-root is empty"),
    (["--white", "nan"], "white=nan must be 0 or more"),
    (["--label-column", "class"], "label_column='class' is for Hugging Face sets"),
    (["--group-by", "(.*)"], "group_by='(.*)': dataset='digits' has no files or columns to group by"),
    (["--warm-start", "nowhere"], "warm_start='nowhere' is no folder; give an atlas, as out/atlas"),
    (
        ["--warm-start", "/tmp", "--search", "grid"],
        "warm_start='/tmp' does not go with --search grid; leave one of them",
    ),
    (["--warm-start", "/tmp", "--start", "label-free"], "does not go with --start label-free"),
    (["--config"], "--config wants a file"),
    (["--config", "/dev"], "--config /dev cannot be read (Is a directory)"),
]


@pytest.mark.parametrize(("args", "expected"), CASES, ids=lambda case: " ".join(case) if isinstance(case, list) else "")
def test_layer_noise(error_of, tiny_model, args, expected):
    given = ["--backbone", tiny_model, "--dataset", "digits", *args]
    assert expected in error_of(layer_noise, layer_noise.LayerNoise, given)


def test_unreachable_tracking_server(error_of, monkeypatch, tiny_model):
    args = ["--backbone", tiny_model, "--dataset", "digits"]
    monkeypatch.setattr("sweeps.driver.tracking_uri", lambda: "http://127.0.0.1:9")
    line = error_of(layer_noise, layer_noise.LayerNoise, args)
    assert "MLFLOW_TRACKING_URI=http://127.0.0.1:9 does not answer" in line


def test_unreachable_cluster(error_of, monkeypatch, tiny_model):
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:9")
    for command, config in ((layer_noise, layer_noise.LayerNoise), (label_free, label_free.LabelFreeRanking)):
        line = error_of(command, config, ["--backbone", tiny_model, "--dataset", "digits"])
        assert "RAY_ADDRESS=127.0.0.1:9 does not answer" in line


LABEL_FREE = [
    (["--num-images", "1"], "num_images=1 must be 8 or more"),
    (["--num-labels", "7"], "num_labels=7 must be 8 or more, or 0 for none"),
    (["--num-labels", "257"], "num_labels=257 must be 0 or more, and 256 at most"),
    (["--every", "100"], "every=100 fits none of the snapshots in "),
    (["--every", "100"], " (none); pretrain.py --snapshot-every makes them"),
]


@pytest.mark.parametrize(("args", "expected"), LABEL_FREE)
def test_label_free(error_of, tiny_model, args, expected):
    given = ["--backbone", tiny_model, "--dataset", "digits", *args]
    assert expected in error_of(label_free, label_free.LabelFreeRanking, given)


AGAINST = ["--against", "timm:test_resnet@random"]


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (["--num-images", "3"], "num_images=3 must be 4 or more"),
        (["--against-blocks", "mid"], "--against-blocks and --against-timesteps are of the networks of --against"),
        (["--blocks", "layer1.0"], "block='layer1.0' is not known; allowed: down.0.0,"),
        (
            [*AGAINST, "--against-blocks", "mid"],
            "timm:test_resnet@random: block='mid' is not known; allowed: conv1.2,",
        ),
        (
            [*AGAINST, "--against-timesteps", "1"],
            "timm:test_resnet@random: timestep=1 is outside this model's schedule;",
        ),
        (["--against", "timm:test_resent@random"], "is none of timm's"),
        (
            ["--against", "nowhere"],
            "backbone='nowhere' is neither a folder or file here nor a model that the hub gives",
        ),
    ],
    ids=lambda case: " ".join(case) if isinstance(case, list) else "",
)
def test_similarity(error_of, tiny_model, args, expected):
    given = ["--backbone", tiny_model, "--dataset", "digits", *args]
    assert expected in error_of(similarity, similarity.Similarity, given)


TRANSFER = [
    (["--backbones"], "backbones=[]: give one or more, and each once"),
    (["--datasets", "digits", "digits"], "datasets=['digits', 'digits']: give one or more, and each once"),
    (["--datasets", "digits", "nowhere"], "dataset='nowhere' is neither a known name nor a folder"),
    (["--backbones", "random:nowhere"], "backbone='nowhere' is neither a folder or file here"),
    (["--sigmas", "0"], "sigmas=[0.0]: give numbers above 0, as 0.03 0.1 0.4"),
    (
        ["--sigmas", "1e9"],
        "model0 on digits: sigmas=[1000000000.0] are all beyond the noise that the network knows, 0.01",
    ),
    (["--site-images", "7"], "site_images=7 must be 8 or more, or 0 for the default"),
    (["--heads", "linaer"], "model0 on digits: head='linaer' is not known"),
]


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (["--atlas", "nowhere"], "nowhere is no folder; give an atlas, as layer_noise.py makes it in --out"),
        (["--atlas", "."], ". holds no entry of an atlas; layer_noise.py adds one when a sweep ends"),
        (["--merge", "nowhere"], "nowhere is no folder"),
    ],
)
def test_atlas(error_of, args, expected):
    assert expected in error_of(atlas, atlas.Atlas, args)


@pytest.mark.parametrize(("args", "expected"), TRANSFER)
def test_transfer(error_of, tiny_model, args, expected):
    given = ["--backbones", tiny_model, "--datasets", "digits", *args]
    assert expected in error_of(transfer, transfer.Transfer, given)


@pytest.mark.parametrize(
    ("command", "config"), [(label_free, label_free.LabelFreeRanking), (pretrain, pretrain.Pretrain)]
)
def test_other_commands_check_their_data(error_of, command, config):
    assert "dataset='nowhere'" in error_of(command, config, ["--dataset", "nowhere"])


CONFIGS = [
    ("blokcs: [mid]", "has the unknown key 'blokcs'; keys: backbone, dataset,"),
    ("blokcs: [mid]", "did you mean 'blocks'?"),
    ("seed: 1\nsearch: grid\nseed: 2", "gives the key 'seed' more than once; give it once"),
    ("num-trials: 1\nnum_trials: 2", "gives the key 'num_trials' more than once"),
    ("- mid", "must hold `name: value` lines, not a list"),
    ("0", "must hold `name: value` lines, not a int"),
    ("a: [", "is not YAML"),
    ("[" * 3000, "is not YAML"),
    ("!!int ''", "is not YAML"),
    ("!!python/object/apply:os.system ['touch ran']", "is not YAML"),
    ("blocks: {mid: 1}", "has blocks={'mid': 1}; give numbers or words"),
    ("seed:", "has seed=None; give numbers or words"),
    ("heads: [linear, --dry-run]", "has heads='--dry-run'; give numbers or words, none with - first"),
    ("dataset: --help", "has dataset='--help'; give numbers or words, none with - first"),
    ("seed: 1.5", "Error parsing --seed"),
    ("seed: true", "Missing value for argument '--seed'"),
    ("dry_run: 1", "'1' is no flag"),
]


@pytest.mark.parametrize(("text", "expected"), CONFIGS)
def test_config_file(error_of, tmp_path, text, expected):
    (tmp_path / "given").mkdir()
    (tmp_path / "given" / "config.yaml").write_text(text)
    args = ["--config", "given/config.yaml"]
    assert expected in error_of(layer_noise, layer_noise.LayerNoise, args)


def test_flags_win_over_the_config_file(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text("timesteps: [1, 2]\nnum-trials: 5\nseed: 2\ndry_run: true\nout: elsewhere\n")
    config = cli.parse(layer_noise.LayerNoise, ["--num-trials", "7", f"--config={path}", "--seed", "3"], "")
    assert (config.timesteps, config.num_trials, config.seed) == ((1, 2), 7, 3)


def test_flags_of_another_command_are_a_value(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text('training: "--latents there --flip"\n')
    flags = ["--config", str(path), "--configurations", "full", "--num-levels=128 --flip"]
    config = cli.parse(noise_ablation.NoiseAblation, flags, "")
    assert config.training == "--latents there --flip" and config.configurations == ("full", "--num-levels=128 --flip")
    for flags in (["--training", "--flip --seed 1"], ["--training=--flip --seed 1"]):
        assert cli.parse(noise_ablation.NoiseAblation, flags, "").training == "--flip --seed 1"


PRETRAINING = [
    (["--steps", "0"], "steps=0 must be 1 or more"),
    (["--batch-size", "0"], "batch_size=0 must be 1 or more"),
    (["--checkpoint-every", "0"], "checkpoint_every=0 must be 1 or more"),
    (["--channels"], "--channels is empty"),
    (["--channels", "7"], "channels=7 must be a multiple of 8"),
    (["--learning-rate", "nan"], "learning_rate=nan must be 1e-09 or more"),
    (["--ema-decay", "2"], "ema_decay=2.0 must be 0 or more, and 1 at most"),
    (["--seed", "-1"], "seed=-1 must be 0 or more"),
    (["--device", "tpu"], "device='tpu' is not available"),
    (["--white", "-1"], "white=-1.0 must be 0 or more"),
    (["--dataset", ""], "--dataset is empty"),
    (["--label-column", "class"], "label_column='class' is for Hugging Face sets"),
    (["--group-by", "(.*)"], "group_by='(.*)': dataset='digits' has no files or columns to group by"),
    (["--out", "/proc/out"], "/proc/out: no such file or directory; allow it, or name other folders"),
]


@pytest.mark.parametrize(("args", "expected"), PRETRAINING)
def test_pretrain(error_of, args, expected):
    assert expected in error_of(pretrain, pretrain.Pretrain, ["--dataset", "digits", *args])
