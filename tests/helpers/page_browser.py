"""What Chromium makes of a page: the result of a script in it, the console, and what is loaded."""

import itertools
import json
import queue
import re
import time
import urllib.request
from collections import namedtuple
from contextlib import contextmanager

import pytest

from tests.helpers import chromium, pages

Visit = namedtuple("Visit", "result console addresses")

FRAME = """<!doctype html><title>frame</title><style>iframe { width: %dpx; height: 900px }</style>
<body><iframe></iframe><script>
const frame = document.querySelector("iframe");
const drawn = () => new Promise((done) => requestAnimationFrame(() => setTimeout(done)));
const pause = () => drawn().then(drawn);
frame.onload = async () => {
  const page = frame.contentDocument;
  const all = (selector) => [...page.querySelectorAll(selector)];
  const one = (selector) => page.querySelector(selector);
  const texts = (selector) => all(selector).map((element) => element.textContent);
  const search = (text) => {
    one("#search").value = text;
    one("#search").dispatchEvent(new Event("input"));
  };
  const press = (element, key) =>
    element.dispatchEvent(new frame.contentWindow.KeyboardEvent("keydown", { key, bubbles: true }));
  const run = async () => { %s };
  await pause();
  const result = await run().catch((error) => String(error.stack));
  await pause();
  fetch(location.pathname, { method: "POST", body: JSON.stringify(result) });
};
frame.src = "page.html";
</script>"""


@contextmanager
def browser(address, home, scheme):
    """A Chromium in a colour scheme, which logs what it loads; gives the log of its console."""
    options = [
        f"--log-net-log={home / 'net.json'}",
        f"--blink-settings=preferredColorScheme={0 if scheme == 'dark' else 1}",
        "--window-size=1500,1000",
    ]
    with chromium.opened(address, home, options):
        yield home / "log"


def write(folder, html, script, width):
    folder.mkdir()
    (folder / "page.html").write_text(html, encoding="utf-8")
    (folder / "frame.html").write_text(FRAME % (width, script), encoding="utf-8")


def control_port(home):
    """Where Chromium takes requests for tabs, which it writes down once it has started."""
    file = home / "profile" / "DevToolsActivePort"
    for _ in range(600):
        if file.exists() and "\n" in file.read_text():
            return int(file.read_text().splitlines()[0])
        time.sleep(0.1)
    return pytest.fail((home / "log").read_text(encoding="utf-8", errors="replace")[-4000:])


def asked(url, method):
    with urllib.request.urlopen(urllib.request.Request(url, method=method), timeout=60) as answer:
        return answer.read()


def received(sent, log, path):
    """What a page sent; what another one sent too late is left out."""
    try:
        while True:
            sender, content = sent.get(timeout=60)
            if sender == path:
                return content
    except queue.Empty:
        pytest.fail(log.read_text(encoding="utf-8", errors="replace")[-4000:])


def visited(html, folder, script="return null", width=1400, scheme="light"):
    """In a Chromium of its own: a script's result, the console, and what was loaded."""
    site, home = folder / "site", folder / "home"
    write(site, html, script, width)
    home.mkdir()
    with (
        pages.served(site) as (address, sent),
        browser(f"{address}/frame.html", home, scheme) as log,
    ):
        result = json.loads(received(sent, log, "/frame.html"))
    said = log.read_text(encoding="utf-8", errors="replace").splitlines()
    console = [line for line in said if "CONSOLE" in line]
    return Visit(result, console, loaded(home / "net.json", address))


def loaded(log, address):
    """The paths that were asked of the server, and whole addresses elsewhere.

    Chromium also asks for updates and the like of its own: such a request is no page's.
    """
    found, own, of_pages = set(), set(), set()
    for event in log.read_text(encoding="utf-8").splitlines():
        urls = set(re.findall(r'"url":"(https?:[^"]*)"', event))
        found |= urls
        if '"initiator":"' in event:
            navigates = re.search(r'"request_type":"[^"]*frame"', event)
            of_page = navigates or '"initiator":"not an origin"' not in event
            (of_pages if of_page else own).update(urls)
    return {url.removeprefix(address) for url in found - (own - of_pages)}


@contextmanager
def tabs(folder):
    """Gives what shows a page in a tab of one Chromium: it returns the result of a script."""
    site, home, count = folder / "site", folder / "home", itertools.count()
    site.mkdir()
    home.mkdir()
    with pages.served(site) as (address, sent), browser("about:blank", home, "light") as log:
        control = f"http://127.0.0.1:{control_port(home)}/json"

        def show(html, script, width=1400):
            name = f"{next(count)}"
            write(site / name, html, script, width)
            tab = json.loads(asked(f"{control}/new?{address}/{name}/frame.html", "PUT"))
            try:
                return json.loads(received(sent, log, f"/{name}/frame.html"))
            finally:
                asked(f"{control}/close/{tab['id']}", "GET")

        yield show


CONTRAST = """
    for (const toggle of all("#parameters .toggle")) toggle.click();
    const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
    const color = (css, under) => {
      canvas.fillStyle = `rgb(${under})`;
      canvas.fillRect(0, 0, 1, 1);
      canvas.fillStyle = css;
      canvas.fillRect(0, 0, 1, 1);
      return [...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3);
    };
    const style = (element) => frame.contentWindow.getComputedStyle(element);
    const ground = (element) => element
      ? color(style(element).backgroundColor, ground(element.parentElement)) : [255, 255, 255];
    const linear = (x) => (x <= 0.04045 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4);
    const light = (rgb) => {
      const [r, g, b] = rgb.map((x) => linear(x / 255));
      return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    const worst = {};
    let texts_ = 0;
    const walker = page.createTreeWalker(page.body, NodeFilter.SHOW_TEXT);
    while (walker.nextNode()) {
      const element = walker.currentNode.parentElement;
      if (!walker.currentNode.data.trim() || !element.getClientRects().length) continue;
      if (element.closest("script, noscript, .unseen, .skip")) continue;
      const under = ground(element);
      const own = style(element);
      const ink = color(element.closest("svg") ? own.fill : own.color, under);
      const [a, b] = [light(ink), light(under)];
      const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
      texts_ += 1;
      if (ratio < 4.5) worst[walker.currentNode.data] = ratio;
    }
    return { worst, texts: texts_, ground: ground(page.body) };
"""
"""A script: texts that do not stand out from their ground, by WCAG's ratio of 4.5."""
