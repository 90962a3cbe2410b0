// All of it.

function showNavigation() {
  const sections = [...document.querySelectorAll("main > section")].filter((section) => !section.hidden);
  const links = new Map();
  for (const section of sections) {
    const title = section.id === "overview" ? "Overview" : section.querySelector("h2").firstChild.textContent;
    const link = el("a", { href: `#${section.id}` }, title);
    if (section.id === "hazards" && facts.hazards.length) {
      const worst = facts.hazards[0].level;
      link.append(el("span", { class: `count ${worst === "error" ? "" : "warning"}` }, count(facts.hazards.length)));
    }
    links.set(section, link);
  }
  document.querySelector("nav").append(...links.values());
  const mark = () => {
    const line = innerHeight / 3;
    const here = sections.filter((section) => section.getBoundingClientRect().top < line).at(-1) ?? sections[0];
    for (const [section, link] of links) {
      if (section === here) link.setAttribute("aria-current", "true");
      else link.removeAttribute("aria-current");
    }
  };
  addEventListener("scroll", mark, { passive: true });
  mark();
}

function show() {
  showOverview();
  showHazards();
  showOptimizer();
  showGroups();
  showParameters();
  showGraph();
  showMemory();
  showState();
  showInterface();
  showStages();
  showRequirements();
  showNavigation();
  byId("search").addEventListener("input", search);
}

show();
