// Groups and their learning rates.

function showGroups() {
  if (!groups.length) return hide("groups");
  byId("groups").append(limited(el("ul", { class: "cards" }), groups, groupCard, 12));
}

function groupCard(group) {
  const index = groups.indexOf(group);
  const [rate, decay] = data.groups[index];
  const listener = {
    click: () => {
      searchFor(`group:${index}`);
      byId("parameters").scrollIntoView();
    },
  };
  return el(
    "li",
    { class: "card group" },
    el(
      "div",
      { class: "head" },
      el("h3", {}, `Group ${index}`),
      el("button", { class: "link", type: "button", on: listener }, plural(group.parameters.length, "parameter")),
    ),
    definitions([
      ["Learning rate", visible(rate)],
      ["Weight decay", visible(decay)],
      ["Centralization", group.grad_centralization ? "of convolution weights" : "no"],
    ]),
    chart(group.curve, `Learning rate of group ${index}`),
  );
}
