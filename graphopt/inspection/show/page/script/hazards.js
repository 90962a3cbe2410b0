// Hazards.

function showHazards(hazards, none) {
  if (!hazards.length) {
    byId("hazards").append(el("p", { class: "card fine" }, badge("✓ fine", "good"), none));
    return;
  }
  Object.assign(byId("hazards").dataset, { worst: hazards[0].level, number: hazards.length });
  byId("hazards").append(limited(el("ul"), hazards, hazard, 12));
}

function hazard(entry) {
  return el(
    "li",
    { class: `card hazard ${entry.level}` },
    el("div", { class: "head" }, badge(entry.level, entry.level), el("h3", {}, words(entry.kind.replaceAll("-", " ")))),
    el("p", { class: "why" }, visible(entry.why)),
    el("p", { class: "fix" }, el("b", {}, "What to do: "), visible(entry.fix)),
    entry.where.length ? chips(entry.where, 8, (name) => el("li", {}, parameterChip(name))) : null,
  );
}
