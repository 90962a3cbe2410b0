// What a step hands to the next.

function showState() {
  if (!facts.state.length) return hide("state");
  const columns = [
    { title: "Input", key: (s) => s.input, cell: (s) => named(short(s.input)) },
    { title: "Fed by output", key: (s) => s.output ?? "", cell: (s) => (s.output === null ? el("span", { class: "muted" }, "written in place") : named(short(s.output))) },
    { title: "Kind", key: (s) => s.kind, cell: (s) => words(s.kind), kind: "nowrap" },
    { title: "Shape", key: (s) => shapeText(s.shape), cell: (s) => shapeText(s.shape), kind: "nowrap" },
    { title: "Type", key: (s) => s.dtype, cell: (s) => short(s.dtype, 60) },
    { title: "Bytes", key: (s) => s.bytes, cell: (s) => bytes(s.bytes), kind: "number" },
    { title: "Starts from", key: (s) => String(s.initial ?? ""), cell: (s) => start(s.initial), kind: "nowrap" },
    { title: "Overwritable", key: (s) => Number(s.overwritable), cell: (s) => yes(s.overwritable) },
  ];
  const overwritable = facts.state.filter((state) => state.overwritable).length;
  byId("state").querySelector("h2").append(
    el("small", {}, `${plural(facts.state.length, "value")} that a step hands to the next; ${count(overwritable)} proven overwritable in place`),
  );
  byId("state").append(new Table("State", columns, facts.state, { noun: "value" }).element);
}

function start(initial) {
  if (initial === null) return el("span", { class: "muted" }, "the caller");
  if (initial === "values") return "values in the file";
  return real(initial);
}
