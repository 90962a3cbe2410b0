// Inputs and outputs.

function showInterface() {
  const columns = [
    { title: "Name", key: (value) => value.name, cell: (value) => named(short(value.name)) },
    { title: "Shape", key: (value) => shapeText(value.shape), cell: (value) => shapeText(value.shape) },
    { title: "Type", key: (value) => value.dtype, cell: (value) => short(value.dtype, 120) },
  ];
  const side = (title, values, noun) =>
    el("div", { class: "stack" }, el("h3", {}, title), values.length ? new Table(title, columns, values, { noun }).element : el("p", { class: "card muted" }, "None."));
  byId("interface").append(
    el("div", { class: "pair" }, side("A caller feeds", facts.inputs, "input"), side("A caller gets", facts.outputs, "output")),
  );
}
