"""Test a sweep's answer on the test set, once.

    python sweeps/final_test.py                              # the newest sweep under out/
    python sweeps/final_test.py --sweep out/layer-noise-1a2b3c4d

The sweep chose on val, so its val accuracy is a little too good; this number is not. It is recorded beside the
sweep and in MLflow, and given again, not measured again, when the command is repeated: a test set that is looked at
twice is a second val set.
"""

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from sweeps import cli


@dataclass(frozen=True)
class FinalTest:
    sweep: Path | None = None
    """Folder of a finished sweep."""
    out: Path = Path("out")
    """Where the newest finished sweep is taken from if --sweep is not given."""


def main(config: FinalTest) -> None:
    from sweeps import testing

    folder = testing.named(config.sweep) if config.sweep else testing.newest(config.out)
    tested, chosen = testing.read_test(folder), testing.room_of(folder).answer_name(folder)
    testing.log_again(folder)
    tested = tested or testing.measure(folder, datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"))
    if tested.cell != chosen:
        raise ValueError(
            f"the test set has been looked at for {tested.cell} ({tested.percent}), and the "
            f"sweep has since chosen {chosen}; delete {folder / testing.RECORD} if you mean to look again"
        )
    lines = [
        f"{tested.cell} ({tested.setting}), {tested.num_train:,} training images",
        f"test {tested.measure}  {tested.percent} on {tested.num_test:,} images, measured once on {tested.date}",
        tested.notes,
        f"val {tested.measure}   {100 * tested.val_chosen:.1f} % when it was chosen",
    ]
    print("\n".join(filter(None, lines)))
    cli.check_complete(testing.incomplete(folder, (testing.NOT_LOGGED,)))  # the pictures are the sweep's to draw


if __name__ == "__main__":
    cli.run(main, FinalTest, __doc__)
