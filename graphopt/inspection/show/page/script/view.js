// A graph that is looked at: its modules as a list and as a drawing, and what is chosen.

const SEEN_AT_FIRST = { forward: 32, loss: 1, backward: 1, update: 1 };
const SMALL = 60;
const MOST_FOUND = 40;

class GraphView {
  /** Options: packed, times, parameters, name, marks (of nodes, by name), chose(item), compact. */
  constructor({ packed, times, parameters: trained, name, marks = new Map(), chose, compact = false }) {
    Object.assign(this, { name, marks, chose, metric: "none", chosen: null, wayNodes: [], foundNodes: [] });
    this.parameterNamed = new Map(trained.map((parameter) => [parameter.name, parameter]));
    this.model = new GraphModel(packed, times);
    this.outline = new Outline(this);
    this.drawing = new Drawing(this);
    this.card = el("div", { class: "chosen", "aria-live": "polite" });
    this.results = el("div", { class: "results", role: "region", "aria-label": "What was found in the graph", hidden: true });
    this.element = el("div", { class: compact ? "view compact" : "view" }, this.tools(), this.results, el("div", { class: "panes" }, this.outline.element, this.drawing.element), this.card);
    this.plant(false);
  }

  tools() {
    const button = (text, title, click) => el("button", { class: "small-button", type: "button", title, "aria-label": title, on: { click } }, text);
    const metrics = Object.entries(METRICS).filter(([key]) => key !== "time" || this.model.timed);
    const select = el("select", { on: { change: (event) => this.colour(event.target.value) } }, metrics.map(([key, { title }]) => el("option", { value: key }, title)));
    this.bucketsShown = el("input", { type: "checkbox", on: { change: (event) => this.plant(event.target.checked) } });
    const hasBuckets = this.model.nodes.some((node) => node.path[0] === this.model.buckets);
    return el(
      "div",
      { class: "tools", role: "toolbar", "aria-label": "Graph" },
      button("−", "Zoom out", () => this.drawing.zoom(1 / ZOOM.step)),
      button("+", "Zoom in", () => this.drawing.zoom(ZOOM.step)),
      button("All", "Show all of it", () => this.drawing.whole()),
      button("Fold", "Fold all modules", () => this.foldAll()),
      el("label", {}, "Color ", select),
      hasBuckets ? el("label", {}, this.bucketsShown, " Buckets") : null,
      button("SVG", "Save the drawing as SVG", () => saveSvg(this.drawing, this.name)),
      button("PNG", "Save the drawing as PNG", () => savePng(this.drawing, this.name)),
    );
  }

  /** Makes the modules, with the nodes that take buckets apart or without. */
  plant(withBuckets) {
    const open = new Set([...(this.tree?.items.values() ?? [])].filter((item) => !item.folded).map((item) => item.key));
    this.tree = new Tree(this.model, { buckets: withBuckets });
    this.tree.root.folded = false;
    if (open.size) for (const item of this.tree.items.values()) item.folded = !open.has(item.key) || item.node !== null;
    else for (const stage of this.tree.root.children) this.tree.unfold(stage, this.model.nodes.length <= SMALL ? SMALL : SEEN_AT_FIRST[stage.stage]);
    this.chosen = null;
    this.card.replaceChildren();
    if (open.size) this.refresh({ fit: true });
  }

  refresh({ fit = false } = {}) {
    this.markAll();
    this.outline.draw();
    this.drawing.draw(fit);
  }

  markOf(item) {
    if (!this.marks.size) return "";
    if (item.node) return this.marks.get(item.node.name) ?? "";
    item.mark ??= this.tree.nodesIn(item).some((node) => this.marks.has(node.name)) ? "inside" : "";
    return item.mark;
  }

  colour(metric) {
    this.metric = metric;
    this.refresh();
  }

  toggle(item) {
    if (item.node) return;
    item.folded = !item.folded;
    this.refresh();
    this.outline.goTo(item);
  }

  foldAll() {
    for (const item of this.tree.items.values()) item.folded = item !== this.tree.root;
    this.refresh({ fit: true });
  }

  choose(item) {
    this.chosen = this.chosen === item ? null : item;
    this.card.replaceChildren(...(this.chosen ? [item.node ? nodeCard(this, item.node) : moduleCard(this, item)] : []));
    this.drawing.render();
    this.outline.goTo(item);
    this.chose?.(this.chosen);
  }

  chooseNode(node) {
    if (!this.tree.of.has(node)) this.showBuckets();
    this.reveal(this.tree.of.get(node));
  }

  /** Unfolds what is around an item, and chooses it. */
  reveal(item) {
    this.tree.reveal(item);
    this.chosen = null;
    this.refresh();
    this.drawing.goTo(item);
    this.choose(item);
  }

  showBuckets() {
    this.bucketsShown.checked = true;
    this.plant(true);
  }

  /** Marks the way of a parameter, and unfolds what it goes through where that is not much. */
  showWay(parameter) {
    this.wayNodes = [];
    this.chosen = null;
    const steps = parameter ? wayOf(parameter, this.model) : [];
    if (parameter && !this.bucketsShown.checked && steps.some((step) => step.nodes.some((node) => !this.tree.of.has(node)))) this.showBuckets();
    this.wayNodes = steps.flatMap((step) => step.nodes);
    for (const { nodes } of steps) this.tree.reveal(this.tree.of.get(nodes[0]));
    this.card.replaceChildren(...(parameter ? [wayCard(this, parameter, steps)] : []));
    this.refresh();
    const first = steps.find((step) => step.title === "Read by")?.nodes[0] ?? this.wayNodes[0];
    if (first) {
      this.drawing.goTo(this.tree.shown(first));
      this.outline.goTo(this.tree.shown(first));
    }
    this.element.classList.toggle("with-way", this.wayNodes.length > 0);
  }

  /** The items that are seen of the way and of what was found. */
  markAll() {
    const seen = (nodes) => new Set(nodes.map((node) => this.tree.shown(node)).filter(Boolean));
    this.way = seen(this.wayNodes);
    this.found = seen(this.foundNodes);
  }

  /** Nodes by name and operator, and tensors by name. */
  search(query) {
    const found = query.empty || !(query.words.length || query.fields.some(([field]) => field === "op")) ? [] : this.matches(query);
    this.foundNodes = found.map(([node]) => node);
    this.first = found[0]?.[0];
    const line = ([node, value]) =>
      el("li", {}, nodeLink(this, node), el("span", { class: "muted" }, ` ${short(node.op, 40)}, ${node.stage}${value ? `, tensor ${short(value.name, 120)} ${tensorType(value)}` : ""}`));
    this.results.hidden = !found.length;
    this.results.replaceChildren(...(found.length ? [el("h3", {}, `${plural(found.length, "node")} found`), limited(el("ul", {}), found.slice(0, 10 * MOST_FOUND), line, MOST_FOUND)] : []));
    this.element.classList.toggle("searching", found.length > 0);
    this.markAll();
    this.outline.mark();
    this.drawing.render();
    return found.length;
  }

  matches(query) {
    const found = [];
    for (const node of this.model.nodes) {
      const op = node.op.toLowerCase();
      if (!query.fields.every(([field, value]) => (field === "op" ? op === value : field === "bucket" && node.path.at(-1)?.toLowerCase() === value))) continue;
      const fits = (name) => query.words.every((word) => name.includes(word));
      const own = `${node.name} ${node.op} ${node.path.join(".")}`.toLowerCase();
      const value = fits(own) ? null : node.outputs.find((output) => fits(output.name.toLowerCase())) ?? node.inputs.find((input) => input && !input.maker && fits(input.name.toLowerCase()));
      if (value !== undefined) found.push([node, value]);
    }
    return found;
  }
}
