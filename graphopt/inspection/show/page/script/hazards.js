// Hazards.

function showHazards() {
  if (!facts.hazards.length) {
    byId("hazards").append(el("p", { class: "card fine" }, badge("✓ fine", "good"), "No hazards were found."));
    return;
  }
  byId("hazards").append(limited(el("ul"), facts.hazards, hazard, 12));
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
