// How two checkpoints differ, tensor by tensor.

const facts = data.facts;

function showPage() {
  const { totals } = facts;
  const names = facts.names.map(fileName);
  document.title = `${names.map((name) => short(name, 60)).join(" and ")} – difference`;
  byId("name").textContent = names.map((name) => short(name, 200)).join(" and ");
  const steps = facts.steps.map((step) => (step === null ? "unknown" : count(step)));
  byId("overview").append(
    factLine([`steps ${steps.join(" and ")}`, [...new Set(facts.kinds)].map(visible).join(" and "), plural(totals.tensors, "tensor")]),
    tiles([
      ["Equal", count(totals.equal), "bit for bit"],
      ["Different", count(totals.different), "other values"],
      ["Do not fit", count(totals.mismatched), "another shape or type"],
      ["Only in one", count(totals.only_first + totals.only_second), `${totals.only_first} in the first, ${totals.only_second} in the second`],
      ["Parameters moved", totals.relative_rms === null ? "–" : inPercent(totals.relative_rms), "of their length"],
    ]),
  );
  const leaves = facts.tensors.map((t) => ({ name: ofParameter(t), totals: differenceFacts(t) }));
  showModules("modules", together(leaves), { columns: differenceColumns(), sum: summedDifferences });
  const fits = (tensor) => tensor.shapes.every((shape) => shape !== null) && String(tensor.shapes[0]) === String(tensor.shapes[1]) && tensor.dtypes[0] === tensor.dtypes[1];
  const name = { title: "Name", key: ofParameter, cell: (t) => named(short(ofParameter(t))) };
  const kind = { title: "Kind", key: (t) => t.kind, cell: (t) => words(t.kind), kind: "nowrap" };
  const type = (at) => ({ title: at ? "Second" : "First", cell: (t) => (t.shapes[at] === null ? "–" : `${shapeText(t.shapes[at])} ${t.dtypes[at]}`) });
  const left = facts.tensors.some((tensor) => tensor.left_out);
  table("changes", facts.tensors.filter((t) => fits(t) && !t.equal), [
    name, kind,
    { title: "Shape", cell: (t) => shapeText(t.shapes[0]), kind: "nowrap" },
    { title: "Largest", key: (t) => t.largest, cell: (t) => measured(t.largest), kind: "number" },
    { title: "Relative RMS", key: (t) => t.relative_rms, cell: (t) => measured(t.relative_rms), kind: "number" },
    { title: "Cosine", key: (t) => t.cosine, cell: (t) => measured(t.cosine, 7), kind: "number" },
    ...(left ? [{ title: "Not finite", key: (t) => t.left_out, cell: (t) => count(t.left_out), kind: "number" }] : []),
  ]);
  table("unfit", facts.tensors.filter((t) => !fits(t)), [name, kind, type(0), type(1)]);
  table("same", facts.tensors.filter((t) => fits(t) && t.equal), [name, kind, type(0)]);
}

/** The parameter that a state belongs to; of other tensors their name. */
function ofParameter(tensor) {
  const head = `${tensor.kind}.`;
  return tensor.name.startsWith(head) ? tensor.name.slice(head.length) : tensor.name;
}

/** A parameter with its states. */
function together(leaves) {
  const byName = new Map();
  for (const { name, totals } of leaves) byName.set(name, [...(byName.get(name) ?? []), totals]);
  return [...byName].map(([name, all]) => ({ name, totals: summedDifferences(all) }));
}

function differenceFacts({ kind, shapes, equal, largest, rms, first_rms, left_out }) {
  const compared = kind === "parameter" && rms !== null && first_rms !== null;
  const size = elementsOf(shapes[0] ?? []) - left_out;
  return {
    tensors: 1, changed: Number(!equal), largest: kind === "parameter" ? largest : null,
    moved: compared ? size * rms ** 2 : 0, length: compared ? size * first_rms ** 2 : 0, compared: Number(compared),
  };
}

function summedDifferences(all) {
  const total = { largest: highest(all, "largest") };
  for (const key of ["tensors", "changed", "moved", "length", "compared"]) total[key] = added(all, key);
  return total;
}

function differenceColumns() {
  const relative = ({ moved, length, compared }) => (!compared || (moved && !length) ? null : length ? Math.sqrt(moved / length) : 0);
  return [
    ["Tensors", (t) => count(t.tensors)],
    ["Different", (t) => count(t.changed)],
    ["Largest of parameters", (t) => measured(t.largest)],
    ["Parameters moved", (t) => (relative(t) === null ? "–" : inPercent(relative(t)))],
  ];
}

const inPercent = (part) => `${few(100 * part, 3)} %`;

function table(id, rows, columns) {
  if (!rows.length) return hide(id);
  searchable(id, new Table(byId(id).textContent, columns, rows, { noun: "tensor" }), (row) => row.name);
}
