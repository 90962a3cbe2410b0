// The modules of a graph as a list for the keyboard and for screen readers.

/** A tree of what is seen; arrow keys go through it, right unfolds, left folds. */
class Outline {
  constructor(view) {
    Object.assign(this, { view, rows: new Map(), current: null });
    this.element = el("ul", { class: "outline", role: "tree", "aria-label": "Modules and nodes" });
    this.element.addEventListener("keydown", (event) => this.key(event));
    this.element.addEventListener("click", (event) => this.click(event));
  }

  draw() {
    const { view } = this;
    this.items = view.tree.seen();
    if (!this.items.includes(this.current)) this.current = this.items.find((item) => item === view.chosen) ?? this.items[0];
    this.rows = new Map(this.items.map((item) => [item, this.row(item)]));
    const held = this.element.contains(document.activeElement);
    this.element.replaceChildren(...this.rows.values());
    this.mark();
    if (held) this.rows.get(this.current)?.focus({ preventScroll: true });
  }

  row(item) {
    const beside = item.parent.children;
    const row = el(
      "li",
      {
        role: "treeitem",
        tabindex: -1,
        class: `${item.stage} ${this.view.markOf(item)}`,
        "aria-level": item.depth + 1,
        "aria-setsize": beside.length,
        "aria-posinset": beside.indexOf(item) + 1,
        "aria-expanded": item.node ? null : String(!item.folded),
      },
      el("span", { class: "arrow", "aria-hidden": "true" }, item.node ? "" : item.folded ? "▸" : "▾"),
      el("span", { class: "label" }, short(item.label, 120)),
      el("span", { class: "value" }, this.value(item)),
    );
    row.style.setProperty("--depth", item.depth);
    row.item = item;
    return row;
  }

  value(item) {
    const share = shareOf(item, this.view.tree, this.view.metric);
    if (share !== null) return percent(share);
    return item.node ? short(item.node.op, 40) : plural(item.totals.nodes, "node");
  }

  mark() {
    for (const [item, row] of this.rows) {
      row.tabIndex = item === this.current ? 0 : -1;
      row.setAttribute("aria-selected", String(item === this.view.chosen));
      row.classList.toggle("way", this.view.way.has(item));
      row.classList.toggle("found", this.view.found.has(item));
    }
  }

  /** Goes to an item, as far as it is seen. */
  goTo(item, focused = false) {
    const row = this.rows.get(item);
    if (!row) return;
    this.current = item;
    this.mark();
    const [top, height] = [row.offsetTop - this.element.offsetTop, this.element.clientHeight];
    if (top < this.element.scrollTop || top + row.offsetHeight > this.element.scrollTop + height) this.element.scrollTop = top - height / 3;
    if (focused) row.focus({ preventScroll: true });
  }

  click(event) {
    const item = event.target.closest("li")?.item;
    if (!item) return;
    this.current = item;
    if (event.target.closest(".arrow") && !item.node) this.view.toggle(item);
    else this.view.choose(item);
  }

  key(event) {
    const item = event.target.closest("li")?.item;
    if (!item || event.ctrlKey || event.metaKey || event.altKey) return;
    this.current = item;
    const at = this.items.indexOf(item);
    const moves = { ArrowDown: this.items[at + 1], ArrowUp: this.items[at - 1], Home: this.items[0], End: this.items.at(-1) };
    if (event.key in moves) this.goTo(moves[event.key] ?? item, true);
    else if (event.key === "ArrowRight" && !item.node) item.folded ? this.view.toggle(item) : this.goTo(item.children[0], true);
    else if (event.key === "ArrowLeft") !item.folded ? this.view.toggle(item) : item.parent.parent && this.goTo(item.parent, true);
    else if (event.key === "Enter" || event.key === " ") this.view.choose(item);
    else return;
    event.preventDefault();
  }
}
