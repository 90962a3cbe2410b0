// Elements of the page, and text in them.

/** An element; options are attributes, or "on" with listeners. Children may be text. */
function el(tag, options = {}, ...children) {
  return filled(document.createElement(tag), options, children);
}

function svg(tag, options = {}, ...children) {
  return filled(document.createElementNS("http://www.w3.org/2000/svg", tag), options, children);
}

function filled(element, options, children) {
  for (const [name, value] of Object.entries(options)) {
    if (name === "on") {
      for (const [event, listener] of Object.entries(value)) element.addEventListener(event, listener);
    } else if (value !== undefined && value !== null && value !== false) {
      element.setAttribute(name, value === true ? "" : value);
    }
  }
  element.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined));
  return element;
}

const byId = (id) => document.getElementById(id);

function named(name, tag = "span") {
  return el(tag, { class: "name" }, breakable(visible(name)));
}

/** Text that breaks between the parts of a name, where it has to. */
function breakable(text) {
  return text.split(/(?<=[./_:])/).flatMap((part, at) => (at ? [el("wbr"), part] : [part]));
}

function badge(text, kind = "") {
  return el("span", { class: `badge ${kind}` }, text);
}

function chips(names, most = 24, chip = (name) => el("li", { class: "chip" }, visible(name))) {
  return limited(el("ul", { class: "chips" }), names, chip, most);
}

/** A list of which the rest comes when asked for. */
function limited(list, entries, made, most) {
  const more = el("button", { class: "link", type: "button" }, `${count(entries.length - most)} more`);
  const item = el("li", {}, more);
  list.append(...entries.slice(0, most).map(made));
  if (entries.length > most) {
    list.append(item);
    more.addEventListener("click", () => {
      item.replaceWith(...entries.slice(most).map(made));
    });
  }
  return list;
}

/** What stands below a small heading. */
function titled(title, ...content) {
  return el("div", {}, el("h3", { class: "minor" }, title), content);
}

/** An element in the color of a kind of memory. */
function colored(tag, options, color) {
  const element = el(tag, options);
  element.style.background = `var(--${color})`;
  return element;
}

/** The filled part of a bar, from 0 to 1 of its length. */
function fill(part, color) {
  const element = colored("i", {}, color);
  element.style.width = `${100 * part}%`;
  return element;
}

function definitions(pairs, kind = "facts") {
  const shown = pairs.filter(([, value]) => value !== null && value !== undefined && value !== "");
  return el("dl", { class: kind }, shown.map(([term, value]) => [el("dt", {}, term), el("dd", {}, value)]));
}

function hide(id) {
  byId(id).hidden = true;
}
