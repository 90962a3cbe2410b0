// How two graphs differ: the changes, and both graphs beside each other.

function showPage() {
  const names = data.sides.map((side) => fileName(side.name));
  document.title = `${names.map((name) => short(name, 60)).join(" and ")} – difference`;
  byId("name").textContent = names.map((name) => short(name, 200)).join(" and ");
  const line = data.sides.map((side) => `${visible(side.kind)}, ${plural(side.nodes, "node")}, ${bytes(side.bytes)}`);
  byId("overview").append(factLine(line));
  showChanges();
  showBoth();
}

function showChanges() {
  if (data.same.length) byId("changes").querySelector("h2").append(el("small", {}, `the same: ${data.same.map(words).join(", ")}`));
  if (!data.changes.length) {
    byId("changes").append(el("p", { class: "card fine" }, badge("✓ equal", "good"), "No difference was found."));
    return;
  }
  const column = (title, at, kind) => ({ title, key: (row) => row[at], cell: (row) => (at === 1 ? named(short(row[at])) : visible(row[at])), kind });
  const table = new Table("Changes", [column("Part", 0, "nowrap"), column("Where", 1), column("Fact", 2), column("Before", 3), column("After", 4)], data.changes, { noun: "change" });
  searchable("changes", table, (row) => `${row[0]} ${row[2]} ${row[5]}`);
}

/** What is chosen in one graph is chosen in the other too, where it is there. */
function showBoth() {
  const views = data.sides.map(
    (side, at) =>
      new GraphView({
        packed: side.graph,
        parameters: side.parameters,
        name: `${at ? "after" : "before"}`,
        marks: new Map(Object.entries(side.marks)),
        compact: true,
        chose: (item) => follow(views[1 - at], views[at], item),
      }),
  );
  const side = (view, at) => el("div", { class: "stack" }, el("h3", {}, `${at ? "After" : "Before"}: `, named(short(data.sides[at].name, 200))), view.element);
  byId("graph").querySelector("h2").append(el("small", {}, "green: only here; yellow: differs, or reads values that do; dashed: has such nodes inside"));
  byId("graph").append(el("div", { class: "side" }, views.map(side)));
  for (const view of views) view.refresh({ fit: true });
  firstFound = () => views[0].first && views[0].chooseNode(views[0].first);
  searchers.push((query) => plural(views.reduce((sum, view) => sum + view.search(query), 0), "node"));
}

let following = false;

function follow(other, view, item) {
  if (following || !item) return;
  following = true;
  const node = item.node && other.model.nodeNamed.get(item.node.name);
  const same = node ? other.tree.of.get(node) : other.tree.items.get(item.key);
  if (same && other.chosen !== same) (other.outline.rows.has(same) ? other.choose(same) : other.reveal(same));
  following = false;
}
