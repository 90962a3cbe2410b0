"""How long the page of a large graph takes to open: ``python -m tests.inspection.show.page_time``.

Needs Chromium, as the tests of the page do. Writes the median of some openings, each from the
request to the second frame that is drawn.
"""

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import graphopt
from graphopt.inspection.reading.read_model import read
from graphopt.inspection.show.page import page
from tests.helpers import chromium, pages
from tools import many_parameters

_FRAME = """<!doctype html><style>iframe { width: %dpx; height: 900px }</style><body><script>
const times = [];
const drawn = () => new Promise((done) => requestAnimationFrame(() => setTimeout(done)));
async function open() {
  const frame = document.createElement("iframe");
  const begun = performance.now();
  frame.src = `page.html?${times.length}`;
  document.body.append(frame);
  await new Promise((done) => { frame.onload = done; });
  await drawn();
  await drawn();
  times.push(performance.now() - begun);
  const from = performance.now();
  frame.contentDocument.querySelector("#graph select").value = "flops";
  frame.contentDocument.querySelector("#graph select").dispatchEvent(new Event("change"));
  await drawn();
  const colored = performance.now() - from;
  const boxes = frame.contentDocument.querySelectorAll(".picture .box").length;
  frame.remove();
  return { colored, boxes };
}
(async () => {
  let last;
  for (let at = 0; at < %d; at += 1) last = await open();
  fetch(location.pathname, { method: "POST", body: JSON.stringify({ times, ...last }) });
})();
</script>"""


def main() -> None:
    """Make a page of a graph of so many nodes, and open it."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--nodes", type=int, default=10_000, help="about how many")
    parser.add_argument("--width", type=int, default=1280, help="of the window, in pixels")
    parser.add_argument("--times", type=int, default=5, help="how often to open it")
    parser.add_argument("--flat", action="store_true", help="without names of modules")
    parser.add_argument("--keep", type=Path, help="where to write the page too")
    options = parser.parse_args()
    model = many_parameters.training_graph(options.nodes // 26, flat=options.flat)
    begun = time.perf_counter()
    reading = read(model)
    found = graphopt.inspect(reading)
    html = page(found, reading)
    print(
        f"{found.model.nodes:,} nodes, {len(found.parameters):,} parameters, "
        f"{len(html) / 2**20:.1f} MiB, made in {time.perf_counter() - begun:.1f} s"
    )
    if options.keep:
        options.keep.write_text(html, encoding="utf-8")
    with tempfile.TemporaryDirectory() as folder:
        seen = _opened(html, Path(folder), options.width, options.times)
    print(
        f"opens in {statistics.median(seen['times']) / 1e3:.2f} s "
        f"({min(seen['times']) / 1e3:.2f} to {max(seen['times']) / 1e3:.2f}), "
        f"{seen['boxes']} boxes drawn; colored anew in {seen['colored'] / 1e3:.2f} s"
    )


def _opened(html: str, folder: Path, width: int, times: int) -> Any:
    site, home = folder / "site", folder / "home"
    site.mkdir()
    home.mkdir()
    (site / "page.html").write_text(html, encoding="utf-8")
    (site / "frame.html").write_text(_FRAME % (width, times), encoding="utf-8")
    with (
        pages.served(site) as (address, sent),
        chromium.opened(f"{address}/frame.html", home, ["--window-size=1500,1000"]),
    ):
        return json.loads(sent.get(timeout=300)[1])


if __name__ == "__main__":
    main()
