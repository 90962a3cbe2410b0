// A checkpoint, tensor by tensor.

const facts = data.facts;

function showPage() {
  const { totals } = facts;
  const file = fileName(facts.name);
  document.title = `${short(file, 80)} – inspection`;
  byId("name").textContent = short(file, 400);
  const line = [visible(facts.kind), facts.step === null ? "step unknown" : `step ${count(facts.step)}`, bytes(facts.bytes)];
  if (facts.learning_rate !== null) line.push(`initial learning rate ${real(facts.learning_rate)}`);
  if (file !== facts.name) line.push(short(facts.name, 400));
  const odd = totals.nan + totals.inf;
  byId("overview").append(
    factLine(line),
    tiles([
      ["Parameters", count(totals.parameter_elements), `in ${plural(totals.parameters, "tensor")}, ${bytes(totals.parameter_bytes)}`],
      ["States", bytes(totals.state_bytes), [...new Set(facts.parameters.flatMap((p) => Object.keys(p.states)))].map(words).join(", ")],
      ["Tensors", count(totals.tensors), plural(totals.elements, "element")],
      ["Zero", count(totals.zeros), `${percent(totals.zeros / (totals.elements || 1))} of all elements`],
      ["NaN or infinite", count(odd), odd ? `${count(totals.nan)} NaN, ${count(totals.inf)} infinite` : "none"],
    ]),
  );
  showHazards(facts.problems, "Nothing is wrong with its values.");
  const states = facts.parameters.flatMap((parameter) => Object.entries(parameter.states).map(([kind, value]) => ({ kind, of: parameter.value.name, ...value })));
  showModules("modules", facts.parameters.map(moduleFacts), { columns: moduleColumns(), sum: summedModules });
  valueTable("parameters", "Parameters", facts.parameters.map((parameter) => parameter.value), "parameter", "Lowest to highest");
  valueTable("states", "States", states, "state", "log10 of magnitudes");
  valueTable("others", "Other tensors", facts.others, "tensor", "Lowest to highest");
  showStepSizes();
}

/** What a parameter adds to its modules. */
function moduleFacts({ value, states }) {
  const size = elementsOf(value.shape);
  const { minimum = null, maximum = null, rms = null, zeros = 0, nan = 0, inf = 0 } = value.statistics ?? {};
  const square = states.mean_square?.statistics?.mean ?? null;
  const stateBytes = Object.values(states).reduce((sum, state) => sum + state.bytes, 0);
  const finite = size - nan - inf;
  return {
    name: value.name,
    totals: {
      parameters: 1, size, minimum, maximum, finite, zeros, odd: nan + inf, bytes: value.bytes + stateBytes,
      squares: rms === null ? 0 : finite * rms ** 2, known: square === null ? 0 : size, meanSquares: square === null ? 0 : size * square,
    },
  };
}

function summedModules(all) {
  const total = { minimum: lowest(all, "minimum"), maximum: highest(all, "maximum") };
  for (const key of ["parameters", "size", "finite", "zeros", "odd", "bytes", "squares", "known", "meanSquares"]) total[key] = added(all, key);
  return total;
}

function moduleColumns() {
  const squares = facts.parameters.some(({ states }) => states.mean_square);
  return [
    ["Parameters", (t) => count(t.parameters)],
    ["Elements", (t) => count(t.size)],
    ["Minimum", (t) => measured(t.minimum)],
    ["Maximum", (t) => measured(t.maximum)],
    ["RMS", (t) => measured(t.finite ? Math.sqrt(t.squares / t.finite) : null)],
    ["Zeros", (t) => percent(t.size ? t.zeros / t.size : 0)],
    ...(facts.totals.nan + facts.totals.inf ? [["Not finite", (t) => count(t.odd)]] : []),
    ...(squares ? [["Mean square", (t) => measured(t.known ? t.meanSquares / t.known : null)]] : []),
    ["With states", (t) => bytes(t.bytes)],
  ];
}

const numberOf = (key) => (tensor) => tensor.statistics?.[key] ?? null;

function valueTable(id, title, tensors, noun, spread) {
  if (!tensors.length) return hide(id);
  const numbers = [["Minimum", "minimum"], ["Maximum", "maximum"], ["Mean", "mean"], ["RMS", "rms"]];
  const counts = [["Zeros", "zeros"], ["NaN", "nan"], ["Infinite", "inf"]].filter(([, key]) => tensors.some(numberOf(key)));
  const columns = [
    { title: "Name", key: (t) => t.of ?? t.name, cell: (t) => named(short(t.of ?? t.name)) },
    ...(tensors.some((t) => t.kind) ? [{ title: "State", key: (t) => t.kind, cell: (t) => words(t.kind), kind: "nowrap" }] : []),
    { title: "Shape", key: (t) => t.shape.length * 1e18 + elementsOf(t.shape), cell: (t) => shapeText(t.shape), kind: "nowrap" },
    { title: "Type", key: (t) => t.dtype, cell: (t) => short(t.dtype, 30) },
    ...numbers.map(([head, key]) => ({ title: head, key: numberOf(key), cell: (t) => measured(numberOf(key)(t)), kind: "number" })),
    ...counts.map(([head, key]) => ({ title: head, key: numberOf(key), cell: (t) => count(numberOf(key)(t) ?? 0), kind: "number" })),
    { title: spread, cell: (t) => histogram(t.statistics?.histogram) },
    { title: "Bytes", key: (t) => t.bytes, cell: (t) => bytes(t.bytes), kind: "number" },
  ];
  searchable(id, new Table(title, columns, tensors, { noun }), (tensor) => tensor.name);
}

function showStepSizes() {
  const rows = facts.parameters.filter((parameter) => parameter.step_sizes).map((parameter) => ({ name: parameter.value.name, ...parameter.step_sizes }));
  if (!rows.length) return hide("steps");
  const guarded = rows.some((row) => row.guarded !== null);
  const known = rows.some((row) => !row.per_unit);
  const columns = [
    { title: "Name", key: (row) => row.name, cell: (row) => named(short(row.name)) },
    ...(known ? [{ title: "Learning rate", key: (row) => row.learning_rate, cell: (row) => measured(row.learning_rate), kind: "number" }] : []),
    ...[["Smallest", "minimum"], ["Median", "median"], ["Largest", "maximum"]].map(([title, key]) => ({ title, key: (row) => row[key], cell: (row) => measured(row[key]), kind: "number" })),
    ...(guarded ? [{ title: "At the guard", key: (row) => row.guarded, cell: (row) => (row.guarded === null ? "–" : `${(100 * row.guarded).toFixed(1)} %`), kind: "number" }] : []),
  ];
  const notes = [];
  if (rows.some((row) => row.per_unit)) notes.push("where no learning rate is known, for one of 1");
  if (rows.some((row) => row.assumed)) notes.push(`epsilon is not known, ${real(rows[0].epsilon)} was assumed`);
  byId("steps").querySelector("h2").append(el("small", {}, ["how far a gradient of one moves an element, before momentum", ...notes].join("; ")));
  searchable("steps", new Table("Step sizes", columns, rows, { noun: "parameter" }), (row) => row.name, "step size");
}
