// Names of parameters, which open their rows.

/** What opens a parameter by its name; null where there is none. */
let opener = () => null;

/** A name that opens its row, if it is a parameter. */
function parameterChip(name, kind = "", written = short(name)) {
  const open = opener(name);
  if (!open) return el("span", { class: `chip ${kind}` }, written);
  const title = typeof written === "string" ? null : short(name, 400);
  return el("button", { class: `chip ${kind}`, type: "button", title, on: { click: open } }, written);
}
