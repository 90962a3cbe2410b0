// Tensors, folded into modules by their names: a table whose rows fold.

const ROWS_AT_FIRST = 30; // unfolding the next modules would show more
const FEW_ROWS = 5;

/** Modules by the dots and slashes in names; a module of one is that one. */
function moduleTree(leaves, sum) {
  const root = { label: "", name: "", children: [], folded: false, inside: new Map() };
  for (const leaf of leaves) {
    const parts = leaf.name.split(/(?<=[./])/);
    let here = root;
    for (const part of parts.slice(0, -1)) {
      if (!here.inside.has(part)) {
        const module = { label: part, name: here.name + part, children: [], folded: true, inside: new Map() };
        here.inside.set(part, module);
        here.children.push(module);
      }
      here = here.inside.get(part);
    }
    here.children.push({ label: parts.at(-1), name: leaf.name, children: null, totals: leaf.totals });
  }
  const settled = (item, depth) => {
    if (!item.children) return Object.assign(item, { depth });
    while (item !== root && item.children.length === 1) {
      const [only] = item.children;
      item = Object.assign(only, { label: item.label + only.label });
      if (!item.children) return Object.assign(item, { depth });
    }
    item.children = item.children.map((child) => settled(child, depth + 1));
    if (item.children.every(({ label }) => /^\d+\b/.test(label))) item.children.sort((a, b) => parseInt(a.label) - parseInt(b.label));
    item.children.forEach((child, at) => Object.assign(child, { parent: item, position: at + 1 }));
    item.totals = sum(item.children.map((child) => child.totals));
    return Object.assign(item, { depth });
  };
  return settled(root, -1);
}

/** Columns are [title, cell(totals)], of numbers; arrow keys go from row to row, right unfolds, left folds. */
class ModuleTable {
  constructor(caption, leaves, { columns, sum }) {
    Object.assign(this, { leaves, columns, sum, current: null });
    this.body = el("tbody");
    const head = (title, kind = null) => el("th", { scope: "col", class: kind }, el("span", {}, title));
    this.table = el(
      "table",
      { role: "treegrid", class: "modules", "aria-label": caption },
      el("thead", {}, el("tr", {}, head("Module"), columns.map(([title]) => head(title, "number")))),
      this.body,
    );
    this.element = el("div", { class: "table" }, el("div", { class: "scroll" }, this.table));
    this.body.addEventListener("click", (event) => this.click(event));
    this.body.addEventListener("keydown", (event) => this.key(event));
    this.body.addEventListener("focusin", (event) => this.mark(event.target.closest("tr")?.item));
    this.plant(leaves);
  }

  plant(leaves) {
    this.root = moduleTree(leaves, this.sum);
    this.current = null;
    for (let level = [this.root], seen = 0; level.length; ) {
      const next = level.flatMap((item) => item.children);
      if (seen >= FEW_ROWS && seen + next.length > ROWS_AT_FIRST) break;
      for (const item of level) item.folded = false;
      seen += next.length;
      level = next.filter((item) => item.children);
    }
    this.draw();
  }

  filter(fits) {
    this.plant(this.leaves.filter(fits));
  }

  seen(item = this.root, found = []) {
    for (const child of item.children) {
      found.push(child);
      if (child.children && !child.folded) this.seen(child, found);
    }
    return found;
  }

  draw() {
    const held = this.body.contains(document.activeElement);
    this.items = this.seen();
    this.rows = new Map(this.items.map((item) => [item, this.row(item)]));
    this.body.replaceChildren(...this.rows.values());
    this.mark(this.rows.has(this.current) ? this.current : this.items[0]);
    if (held) this.rows.get(this.current)?.focus();
  }

  row(item) {
    const own = { "aria-level": item.depth + 1, "aria-setsize": item.parent.children.length, "aria-posinset": item.position };
    const arrow = el("span", { class: "arrow", "aria-hidden": "true" }, item.children ? (item.folded ? "▸" : "▾") : "");
    const name = el("span", { class: "name", title: visible(item.name) }, breakable(short(item.label.replace(/[./]$/, ""))));
    const row = el(
      "tr",
      { ...own, class: item.children ? "module" : "", "aria-expanded": item.children ? String(!item.folded) : null, tabindex: -1 },
      el("th", { scope: "row" }, el("div", {}, arrow, name)),
      this.columns.map(([, cell]) => el("td", { class: "number" }, cell(item.totals))),
    );
    row.style.setProperty("--depth", item.depth);
    return Object.assign(row, { item });
  }

  /** One row is reached by the Tab key, the others by arrows from there. */
  mark(item) {
    this.rows.get(this.current)?.setAttribute("tabindex", "-1");
    this.current = item;
    this.rows.get(item)?.setAttribute("tabindex", "0");
  }

  toggle(item) {
    item.folded = !item.folded;
    this.current = item;
    this.draw();
  }

  /** A module folds; a tensor is what the other tables show. */
  click(event) {
    const item = event.target.closest("tr")?.item;
    if (!item || String(getSelection())) return;
    if (item.children) this.toggle(item);
    else searchFor(item.name);
  }

  key(event) {
    const item = event.target.closest("tr")?.item;
    if (!item || event.ctrlKey || event.metaKey || event.altKey) return;
    const at = this.items.indexOf(item);
    const go = (to) => this.rows.get(to)?.focus();
    const moves = { ArrowDown: this.items[at + 1], ArrowUp: this.items[at - 1], Home: this.items[0], End: this.items.at(-1) };
    if (event.key in moves) go(moves[event.key]);
    else if (event.key === "ArrowRight") item.children && (item.folded ? this.toggle(item) : go(item.children[0]));
    else if (event.key === "ArrowLeft") item.children && !item.folded ? this.toggle(item) : go(item.parent);
    else if (event.key === "Enter" || event.key === " ") this.click(event);
    else return;
    event.preventDefault();
  }
}

/** The table in its section, which the search keeps to what fits. */
function showModules(id, leaves, options) {
  if (!leaves.some(({ name }) => /[./]/.test(name))) return hide(id);
  const table = new ModuleTable("Modules", leaves, options);
  byId(id).append(table.element);
  searchers.push((query) => {
    table.filter((leaf) => nameFits(leaf.name, query));
    return null;
  });
}

const added = (all, key) => all.reduce((sum, totals) => sum + (totals[key] ?? 0), 0);
const lowest = (all, key) => all.reduce((least, totals) => (totals[key] === null || (least !== null && least <= totals[key]) ? least : totals[key]), null);
const highest = (all, key) => all.reduce((most, totals) => (totals[key] === null || (most !== null && most >= totals[key]) ? most : totals[key]), null);
