// The links to the sections, and the start.

function showNavigation() {
  const sections = [...document.querySelectorAll("main > section")].filter((section) => !section.hidden);
  const links = new Map();
  for (const section of sections) {
    const title = section.id === "overview" ? "Overview" : section.querySelector("h2").firstChild.textContent;
    const link = el("a", { href: `#${section.id}` }, title);
    const { worst, number } = section.dataset;
    if (worst) link.append(el("span", { class: `count ${worst === "error" ? "" : "warning"}` }, count(Number(number))));
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

/** What the last part of the script of each kind of page says to be shown. */
function showAll() {
  showPage();
  showNavigation();
  const field = byId("search");
  field.addEventListener("input", search);
  field.addEventListener("keydown", (event) => {
    if (event.key === "Enter") firstFound?.();
  });
}

showAll();
