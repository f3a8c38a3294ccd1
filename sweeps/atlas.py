"""List what sweeps have found, merge it with what others have found, and plot it.

    python sweeps/atlas.py                                         # list and plot the atlas under out/
    python sweeps/atlas.py --merge ../theirs/atlas ./from-a-colleague

layer_noise.py and transfer.py add one small JSON file a sweep: which network, how large a dataset, how its sites (block
x timestep) ranked, which cell won. `layer_noise.py --warm-start out/atlas` begins where sweeps on other datasets have
ended. A file holds no path, no user and no image; copy the folder to whom you like. Nothing is sent anywhere.

Files that are damaged, or of something else, are named and skipped.
"""

from dataclasses import dataclass
from pathlib import Path

from sweeps import cli


@dataclass(frozen=True)
class Atlas:
    atlas: Path = Path("out/atlas")
    """The folder that is listed, and into which others are merged; it is made if others are."""
    merge: tuple[Path, ...] = ()
    """Atlases of others, whose entries are copied."""
    figure: Path | None = None
    """Where the picture goes: where the winners lie, by noise and depth. By default atlas.png beside the folder."""


def main(config: Atlas) -> None:
    from sweeps.probing import atlas_table

    print(atlas_table.show(config.atlas, config.merge, config.figure or config.atlas.parent / "atlas.png"))


if __name__ == "__main__":
    cli.run(main, Atlas, __doc__)
