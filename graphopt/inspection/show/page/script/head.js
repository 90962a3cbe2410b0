// What stands at the head of a page.

/** The last part of a path. */
function fileName(path) {
  return path.split(/[\\/]/).pop() || path;
}

/** A line of short facts. */
function factLine(parts) {
  return el("p", { class: "line" }, parts.map((part) => el("span", {}, part)));
}

/** Figures: what each is of, the figure, and a note. */
function tiles(entries) {
  return el("dl", { class: "tiles" }, entries.map(([term, value, note]) => el("div", {}, el("dt", {}, term), el("dd", {}, value, el("small", {}, note)))));
}
