"""The published numbers that can be measured again: DDAE (Xiang et al., ICCV 2023), GANs (Mukhopadhyay et al.,
Diffusion Models Beat GANs on Image Classification, 2307.08702), EP (Psomas et al., ICLR 2026, its benchmark), CleanDIFT
(Stracke et al., CVPR 2025). Timesteps are those of the files: diffusers counts from 0 where DDAE counts DDPM's from
1."""

from sweeps.reproducing.entry import Entry, FineTuning, Generation, OwnScores, Probe, Training


def ddae(epochs: int) -> Training:
    """Table 6; four devices, whose learning rates the code adds up."""
    return Training("adam", 4e-3, 512, epochs, by_epoch=True)


def gans(epochs: int = 28) -> Training:
    """Section 4: VISSL's epochs and steps. The learning rate is not printed; that of Adam's default is taken."""
    return Training("adam", 1e-3, 256, epochs, step_epochs=8)


def ep(learning_rate: float = 1.6) -> Training:
    """0.1 x 4,096 / 256, as MAE counts it (EP's logs/dit_xl)."""
    return Training("lars", learning_rate, 4096, 90, warmup_epochs=10)


ON_TEST = "the paper's number is the best of a grid that was chosen on the test images"
ONE_DEVICE = "one device: the paper's batches and learning rate are as many times larger as it has GPUs (4, of DiT 8)"
UNSAID = "the learning rate and the batch are not printed in the paper; these are Adam's default and 256"
MEAN = "latents are the mean of the VAE's posterior, not samples of it"
CONDITION = "the network is told its null class and t = 0, with the least noise; EP has zeros as condition and no noise"
CENTRE = "random resized crops are taken of the centre square"
DEPTH = "the head has five blocks, the best of Table 9; the paper says 'the best-performing attention head' alone"
CNN = "the CNN pads its maps by one pixel"
LARS = "timm's LARS also adapts the rates of biases"
NORM = (
    "a layer norm stands before the last layer, and features are not standardised; EP's probe has no norm with weights"
)
DIFFUSERS = "the checkpoint is Google's, converted from the same TensorFlow weights as pesser's"

EDM_CIFAR = ("edm-cifar10", "cifar10")
EDM_TINY = ("edm-tiny", "tiny-imagenet")

DDAE = (
    Entry("ddae-cifar10-ddpm-linear", "DDAE, section 4.1.2", 88.5, 1.5, "ddpm-cifar10", "cifar10",
          Probe("out_7", 10, training=ddae(10), augment="flip+crop"), differs=(DIFFUSERS,), says=ON_TEST),
    Entry("ddae-cifar10-edm-fid", "DDAE, Table 2", 2.0, 0.2, *EDM_CIFAR, Generation("heun", 18)),
    Entry("ddae-cifar10-edm-linear", "DDAE, Tables 2 and 3", 95.9, 1.0, *EDM_CIFAR,
          Probe("out_6", 4, training=ddae(15), augment="flip+crop"), says=ON_TEST),
    Entry("ddae-cifar10-edm-finetune", "DDAE, Tables 2 and 3", 97.2, 1.0, *EDM_CIFAR,
          FineTuning("out_6", 4, "ddae", 1e-3, 50), differs=(ONE_DEVICE,)),
    Entry("ddae-cifar10-wrn", "DDAE, Tables 2 and 3", 96.3, 1.0, "wrn", "cifar10",
          FineTuning("last", 0, "classifier", 0.1, 200, init="scratch"), differs=(ONE_DEVICE,)),
    Entry("ddae-cifar10-edm-imagenet-linear", "DDAE, Table 3", 91.4, 1.0, "edm-imagenet", "cifar10",
          Probe("", 0, training=ddae(15), augment="flip+crop"), says=ON_TEST),
    Entry("ddae-cifar10-edm-imagenet-finetune", "DDAE, Table 3", 98.1, 1.0, "edm-imagenet", "cifar10",
          FineTuning("", 0, "ddae", 1e-3, 50), differs=(ONE_DEVICE,)),
    Entry("ddae-cifar10-simclr-linear", "DDAE, Table 3 (from SimCLR)", 90.6, 1.0, "simclr", "cifar10",
          Probe("layer4.2", 0, "logistic"), image_size=224,
          differs=("images are resized to 224 pixels as a whole", "the penalty is chosen on val among others")),
    Entry("ddae-cifar10-dit-linear", "DDAE, Table 3", 84.3, 1.5, "dit", "cifar10",
          Probe("block.12", 121, training=ddae(30), augment="flip+crop"), 256, differs=(MEAN,), says=ON_TEST),
    Entry("ddae-cifar10-dit-linear-code", "DDAE's code, README", 85.73, 1.5, "dit", "cifar10",
          Probe("block.13", 121, training=ddae(30), augment="flip+crop"), 256, differs=(MEAN,), says=ON_TEST),
    Entry("ddae-cifar10-dit-finetune", "DDAE, Table 3", 98.4, 1.0, "dit", "cifar10",
          FineTuning("block.12", 121, "ddae-dit", 8e-5, 50), differs=(ONE_DEVICE, MEAN), image_size=256),
    Entry("ddae-tiny-ddpm-linear", "DDAE, section 4.1.2 (50.0 less 3.2)", 46.8, 1.5, "ddpm-tiny", "tiny-imagenet",
          Probe("out_2", 44, training=ddae(20), augment="flip+crop"), says=ON_TEST),
    Entry("ddae-tiny-ddpm-finetune", "DDAE, section 4.1.2 (69.4 less 5.3)", 64.1, 1.5, "ddpm-tiny", "tiny-imagenet",
          FineTuning("out_2", 44, "ddae", 1e-3, 80), differs=(ONE_DEVICE,)),
    Entry("ddae-tiny-edm-fid", "DDAE, Table 2", 19.5, 2.0, *EDM_TINY, Generation("heun", 18),
          differs=("the sampler's steps are not printed; 18 are CIFAR-10's",)),
    Entry("ddae-tiny-edm-linear", "DDAE, Tables 2 and 4", 50.0, 1.5, *EDM_TINY,
          Probe("out_7", 14, training=ddae(30), augment="flip+crop"), num_steps=50, says=ON_TEST),
    Entry("ddae-tiny-edm-finetune", "DDAE, Tables 2 and 4", 69.4, 1.5, *EDM_TINY,
          FineTuning("out_7", 14, "ddae", 1e-3, 100), num_steps=50, differs=(ONE_DEVICE,)),
    Entry("ddae-tiny-wrn", "DDAE, Tables 2 and 4", 69.3, 1.5, "wrn", "tiny-imagenet",
          FineTuning("last", 0, "classifier", 0.1, 200, init="scratch"), image_size=64, differs=(ONE_DEVICE,)),
    Entry("ddae-tiny-dit-linear", "DDAE, Table 4", 66.3, 1.5, "dit", "tiny-imagenet",
          Probe("block.13", 91, training=ddae(30), augment="flip+crop"), differs=(MEAN,), says=ON_TEST, image_size=256),
    Entry("ddae-tiny-dit-linear-code", "DDAE's code, README", 66.57, 1.5, "dit", "tiny-imagenet",
          Probe("block.13", 81, training=ddae(30), augment="flip+crop"), differs=(MEAN,), says=ON_TEST, image_size=256),
    Entry("ddae-tiny-dit-finetune", "DDAE, Table 4", 77.8, 1.5, "dit", "tiny-imagenet",
          FineTuning("block.13", 91, "ddae-dit", 8e-5, 50), differs=(ONE_DEVICE, MEAN), image_size=256),
)  # fmt: skip

CODE = (
    ("ddpm", "ddae-ddpm", 90.05, 4.09, "out_6", 11, 10),
    ("edm", "ddae-edm-ddpm", 90.44, 3.97, "out_6", 4, 15),
    ("ddpm-ddpmpp", "ddae-ddpmpp", 93.97, 3.08, "out_7", 11, 10),
    ("edm-ddpmpp", "ddae-edm-ddpmpp", 94.50, 2.23, "out_7", 4, 15),
    ("edm-ddpmpp-augmented", "ddae-edm-ddpmpp-aug", 95.49, 2.34, "out_7", 4, 15),
)
"""The code's own checkpoints: name, model, accuracy of its best probe, FID at that epoch, block, timestep, epochs."""

OF_THE_CODE = (
    *(Entry(f"ddae-code-{name}-linear", "DDAE's code, README", accuracy, 1.0, model, "cifar10",
            Probe(block, timestep, training=ddae(epochs), augment="flip+crop"), says=ON_TEST)
      for name, model, accuracy, _, block, timestep, epochs in CODE),
    *(Entry(f"ddae-code-{name}-fid", "DDAE's code, README", fid, 0.3, model, "cifar10",
            Generation("heun", 18) if name.startswith("edm") else Generation("ddim", 100))
      for name, model, _, fid, *_ in CODE),
)  # fmt: skip


def adm(
    name: str,
    source: str,
    published: float | None,
    head: str = "ddae",
    pooling: int = 1,
    tolerance: float = 1.0,
    dataset: str = "imagenet",
    block: str = "b24",
    timestep: int = 90,
    says: str = "",
) -> Entry:
    """A head on ADM's unconditional 256-pixel network."""
    differs: tuple[str, ...] = (UNSAID, CNN) if head.startswith("cnn") else (UNSAID,)
    if head.startswith("attention") and dataset == "imagenet":
        differs += (DEPTH,)
    recipe = Probe(block, timestep, head, pooling, gans())
    return Entry(name, source, published, tolerance, "adm", dataset, recipe, differs=differs, says=says)


GANS = (
    Entry("gans-unet-encoder", "GANs, Table 1", 64.32, 1.0, "adm-classifier", "imagenet", OwnScores("scores"),
          differs=("t = 0 adds the least noise of the schedule",)),
    adm("gans-linear", "GANs, Tables 1 and 3", 61.95),
    adm("gans-linear-pool2", "GANs, Table 1", 64.96, pooling=2,
        says="the row is not labelled where it was read; that it is pool 2 is inferred from Table 6"),
    adm("gans-attention", "GANs, Tables 1 and 3", 71.89, "attention-5", 8),
    Entry("gans-fid", "GANs, Table 1", 26.21, 1.0, "adm", "imagenet", Generation("ancestral", 250),
          differs=("the variance is DDPM's, not the one that the network predicts",)),
    *(Entry(f"gans-finetune-pool{pooling}", "GANs, Table 2", published, 1.0, "adm", "imagenet",
            FineTuning("b24", 90, "gans", 1e-3, 28, "flip", pooling),
            differs=("SGD at 1e-3 as in the code; the paper says Adam, without its rate",))
      for pooling, published in ((2, 73.17), (4, 73.50))),
    *(adm(f"gans-{kind}-b{block}-t{timestep}", "GANs, Table 3", published, head, pooling, 1.0, "imagenet",
          f"b{block}", timestep)
      for kind, head, pooling, found in (
          ("linear", "ddae", 1, ((19, 90, 55.09), (19, 150, 54.77), (24, 150, 61.86))),
          ("attention", "attention-5", 8, ((19, 90, 66.03), (19, 150, 64.85), (24, 150, 70.98))))
      for block, timestep, published in found),
    *(Entry(f"gans-sd-{name}", "GANs, Table 4", published, 1.0, model, "imagenet",
            Probe(block, 150, training=gans(15)), image_size=size, differs=(UNSAID, MEAN))
      for name, model, block, size, published in (
          ("b18", "sd", "b18", 512, 64.67), ("b15", "sd", "b15", 512, 55.77),
          ("b18-256", "sd", "b18", 256, 41.37), ("text", "sd-text", "b18", 512, 65.18))),
    Entry("gans-linear-augmented", "GANs, Table 6", 65.07, 1.0, "adm", "imagenet",
          Probe("b24", 90, "ddae", 2, gans(15), "resized-crop"), differs=(UNSAID, CENTRE),
          says="the augmentation is not named; resized crops are those of Figure 7"),
    *(Entry(f"gans-code-{name}", "GANs' code (diffssl)", None, 1.0, "adm", "imagenet",
            Probe("b24", 150, head, pooling, Training("sgd", rate, 128, 28, step_epochs=7), "large-crop"),
            differs=differs, says="the code's recipe; no number is printed for it")
      for name, head, pooling, rate, differs in (
          ("linear", "ddae", 2, 1e-2, (CENTRE,)),
          ("attention", "attention-2", 16, 5e-2, (CENTRE,)))),
    *(adm(f"gans-in50-linear-{name}", "GANs, Table 7", published, "ddae", pooling, 1.7, "imagenet-50")
      for name, pooling, published in (("1k", 1, 87.20), ("4k", 2, 89.41), ("16k", 4, 89.58), ("65k", 8, 88.28))),
    *(adm(f"gans-in50-mlp-{name}", "GANs, Table 7", published, head, pooling, 1.7, "imagenet-50")
      for name, head, pooling, published in (
          ("1k-2k", "mlp-2048", 1, 87.93), ("4k-2k", "mlp-2048", 2, 88.50),
          ("4k-2k-2k", "mlp-2048-2048", 2, 88.67), ("16k-2k", "mlp-2048", 4, 89.76))),
    *(adm(f"gans-in50-cnn-{name}", "GANs, Table 8", published, head, 16, 1.7, "imagenet-50")
      for name, head, published in (
          ("1k-256-256", "cnn-256-256", 88.98), ("1k-512-256", "cnn-512-256", 88.67),
          ("1k-1k-256", "cnn-1024-256", 88.93), ("1k-1k-1k", "cnn-1024-1024", 89.50),
          ("1k-2k-512", "cnn-2048-512", 89.19), ("1k-2k-2k", "cnn-2048-2048", 89.76),
          ("1k-4k-2k", "cnn-4096-2048", 89.89), ("1k-4k-2.5k", "cnn-4096-2560", 89.50))),
    *(adm(f"gans-in50-attention-{depth}", "GANs, Table 9", published, f"attention-{depth}", 8, 1.7, "imagenet-50")
      for depth, published in enumerate((91.67, 91.58, 92.01, 92.27, 92.71), 1)),
)  # fmt: skip

FGVC = "aircraft", "cars", "cub", "dogs", "flowers", "nabirds"
ORDER = "bars alone; the text: ADM's heads lie below SimCLR on all sets but Aircraft, where three of four lie above"
CROPS = "bars alone; the text: with random resized crops ADM's heads tend to do worse"

FIGURES = tuple(
    Entry(f"gans-{figure}-{dataset}-{network}", f"GANs, Figure {number}", None, 1.0, network, dataset,
          Probe(block, timestep, "ddae", pooling, gans(), augment), size, differs=(UNSAID, *crops), says=says)
    for number, figure, augment, says, crops in (
        (4, "fig4", "flip", ORDER, ()), (7, "fig7", "resized-crop", CROPS, (CENTRE,)))
    for dataset in FGVC
    for network, block, timestep, pooling, size in (
        ("adm", "b24", 90, 4, 0), ("simclr", "layer4.2", 0, 1, 224), ("swav", "layer4.2", 0, 1, 224))
)  # fmt: skip

OTHERS = (
    *(Entry(f"ep-dit-{probe}{'' if own else '-ours'}", "EP's benchmark, row DiT-XL/2", published if own else None, 1.0,
            "dit", "imagenet", Probe("block.27" if own else "block.13", 0 if own else 91, head, pooling, training,
            "resized-crop"), differs=(CONDITION, MEAN, *more) if own else (MEAN, *more),
            says=says if own else "nobody has printed it: the benchmark's protocol at DDAE's cell")
      for probe, head, pooling, training, published, more, says in (
          ("knn", "knn", 1, None, 4.96, (), "its log at k = 20; the row's 5.25 is the best k, 50"),
          ("linear", "bn-linear", 1, ep(), 32.70, (LARS, CENTRE), "stopped by hand after epoch 88 of 90"),
          ("efficient", "efficient-128", 16, ep(), 57.00, (LARS, NORM, CENTRE), "stopped by hand after epoch 86 of 90"))
      for own in (True, False)),
    *(Entry(f"cleandift-{name}-knn", "CleanDIFT, Figure 10", published, 1.0, model, "imagenet",
            Probe("up.0.2", timestep, "knn"), image_size=512,
            differs=("20 neighbours vote, weighted, and not 10", "which map of that size and which timestep is read is "
                     "not printed"))
      for name, model, timestep, published in (("sd", "sd-2.1", 150, 40.8), ("cleandift", "cleandift", 0, 40.85))),
)  # fmt: skip

SHIPPED = (
    Entry("shipped-linear", "this project, docs/reproduce.md", 60.8, 2.5, "shipped", "fashion-mnist-8k",
          Probe("up.1.1", 30, training=ddae(15), augment="flip+crop"),
          says="no paper's number: it takes no file, to try the command with, and its head is far from converged"),
)  # fmt: skip

ENTRIES = {entry.name: entry for entry in (*SHIPPED, *DDAE, *OF_THE_CODE, *GANS, *FIGURES, *OTHERS)}
"""name -> entry."""
