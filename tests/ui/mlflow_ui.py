"""MLflow's UI as the report's `trials` line starts it, and a real browser that looks at it.

python -m tests.ui.mlflow_ui out/layer-noise-bfe18039 docs/mlflow_compare.png    # the picture in the README
"""

import shlex
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from selenium.webdriver import Chrome, ChromeOptions, ChromeService
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.wait import WebDriverWait

from tests.commands import PATIENCE_SECONDS
from tests.servers import answers, free_port, serving

WITHOUT_BROWSER = "" if shutil.which("chromedriver") else "no Chromium here: apt install chromium-driver"
SWITCHES = "--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--enable-unsafe-swiftshader", "--no-first-run"
"""As root, in a container, with WebGL on the CPU."""


@contextmanager
def ui(report: str, cwd: Path) -> Iterator[str]:
    """The address that the report prints, on another port, while the command runs that it prints."""
    [line] = [line for line in report.splitlines() if line.startswith("trials ")]
    command, address = line.removeprefix("trials").split(", then ")
    port = free_port()
    command = [*shlex.split(command), "--port", str(port), "--workers", "1"]
    ready = partial(answers, f"http://127.0.0.1:{port}/health")
    with tempfile.TemporaryDirectory() as folder, serving(command, ready, Path(folder, "log"), cwd):
        yield address.replace(":5000", f":{port}")


class Browser:
    """Chromium without a screen. What is asked for is waited for."""

    def __init__(self, width: int = 2000) -> None:
        options = ChromeOptions()
        options.binary_location = shutil.which("chromium") or ""
        for switch in (*SWITCHES, f"--window-size={width},1200"):
            options.add_argument(switch)
        self.driver = Chrome(options, ChromeService(shutil.which("chromedriver")))
        self.script = self.driver.execute_script

    def wait(self, condition: Callable[[], object]) -> object:
        """What the condition gives, as soon as that is true."""
        return WebDriverWait(self.driver, PATIENCE_SECONDS, 0.1).until(lambda _: condition())

    def find(self, selector: str, text: str = "") -> WebElement:
        """The first element that is shown, and whose text is this one if one is given."""

        def shown() -> WebElement | None:
            found = self.driver.find_elements(By.CSS_SELECTOR, selector)
            return next((e for e in found if e.is_displayed() and text in ("", e.text)), None)

        return self.wait(shown)

    def click(self, selector: str, text: str = "") -> None:
        element = self.find(selector, text)
        self.wait(element.is_enabled)
        element.click()

    def texts(self, selector: str) -> list[str]:
        return self.script("return [...document.querySelectorAll(arguments[0])].map(e => e.textContent)", selector)

    def column(self, name: str) -> list[str]:
        """Of the table of runs, from its top."""
        return self.script(
            """const rows = [...document.querySelectorAll('.ag-center-cols-container [role=row]')]
            rows.sort((a, b) => a.getAttribute('row-index') - b.getAttribute('row-index'))
            return rows.map(row => row.querySelector(`[col-id="${arguments[0]}"]`)?.textContent)""",
            name,
        )

    def headers(self) -> list[str]:
        """Of the table of runs, from its left."""
        cells = self.driver.find_elements(By.CSS_SELECTOR, ".ag-header-cell")
        return [cell.get_attribute("col-id") for cell in sorted(cells, key=lambda cell: cell.location["x"])]

    def plot(self, *types: str) -> list[dict]:
        """What Compare's open tab draws, once it is of these types."""

        def drawn() -> list[dict] | None:
            traces = self.script("return document.querySelector('[role=tabpanel] .js-plotly-plot')?.data ?? []")
            return traces if [trace["type"] for trace in traces] == [*types] else None

        return self.wait(drawn)

    def compare_all(self) -> None:
        """Select every run of the table and press Compare."""
        self.click('.ag-header-cell[col-id="1"] .ag-checkbox')
        self.click("[data-testid=runs-compare-button]")

    def parallel_coordinates(self, params: Sequence[str], metric: str) -> list[dict]:
        """The axes of Compare's first chart, once they are these."""
        self.click("[data-testid=clear-button]")
        for place, names in enumerate((params, [metric])):
            self.wait(lambda: len(self.driver.find_elements(By.CSS_SELECTOR, ".du-bois-light-select")) == 2)
            self.driver.find_elements(By.CSS_SELECTOR, ".du-bois-light-select")[place].click()
            for name in names:
                self.click(f".du-bois-light-select-item-option[title={name}]")
            self.click("h2, h1")  # closes the list

        def axes() -> list[dict] | None:
            [trace] = self.plot("parcoords")
            return trace["dimensions"] if [axis["label"] for axis in trace["dimensions"]] == [*params, metric] else None

        return self.wait(axes)

    def choose(self, selector: str, option: str) -> None:
        self.click(selector)
        self.click("[role=option]", option)
        self.find(selector, option)

    def close(self) -> None:
        self.driver.quit()


def picture(sweep: Path, path: Path) -> None:
    """Compare, with all trials of a finished sweep; run where the sweep was."""
    browser = Browser(1400)
    try:
        with ui((sweep / "report.txt").read_text(), Path()) as address:
            browser.driver.get(address)
            browser.click("button[aria-label=Close]")  # MLflow's assistant
            browser.compare_all()
            browser.parallel_coordinates(["block", "timestep", "pooling", "head"], "val_accuracy")
            browser.find("[data-orientation]:has(> [role=tabpanel])").screenshot(str(path))
    finally:
        browser.close()


if __name__ == "__main__":
    picture(*map(Path, sys.argv[1:]))
