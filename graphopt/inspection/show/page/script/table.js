// Tables that sort, filter and open.

const BATCH = 100;
const MOST_AT_ONCE = 2000;

/**
 * A table that sorts, and adds rows as one scrolls to them.
 *
 * Columns are {title, cell(row), key(row)?, kind?}; details(row) fills what opens under a row.
 */
class Table {
  constructor(caption, columns, rows, { details, noun = "row" } = {}) {
    Object.assign(this, { columns, rows, details, noun, opened: new Set(), elements: new Map() });
    this.kept = rows;
    this.sorting = { column: null, descending: false };
    this.body = el("tbody");
    this.heads = columns.map((column) => this.head(column));
    const table = el(
      "table",
      { class: details ? "opens" : "", "aria-rowcount": rows.length + 1 },
      el("caption", { class: "unseen" }, caption),
      el("thead", {}, el("tr", {}, this.heads)),
      this.body,
    );
    this.scroll = el("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": caption }, table);
    this.scroll.addEventListener("scroll", () => this.grow(), { passive: true });
    this.count = el("span");
    this.all = el("button", { class: "link", type: "button", on: { click: () => this.showAll() } });
    this.foot = el("div", { class: "foot" }, this.count, this.all);
    this.element = el("div", { class: "table" }, this.scroll, this.foot);
    if (details) this.body.addEventListener("keydown", (event) => this.move(event));
    addEventListener("beforeprint", () => this.showAll());
    this.refresh();
  }

  head(column) {
    const numeric = column.kind === "number" ? "number" : null;
    if (!column.key) return el("th", { scope: "col", class: numeric }, el("span", {}, column.title));
    const listener = { click: () => this.sort(column) };
    const button = el("button", { type: "button", on: listener }, column.title);
    return el("th", { scope: "col", class: numeric, "aria-sort": "none" }, button);
  }

  sort(column) {
    const again = this.sorting.column === column;
    const descending = again ? !this.sorting.descending : column.kind === "number";
    this.sorting = { column, descending };
    this.heads.forEach((head, at) => {
      if (!this.columns[at].key) return;
      const direction = descending ? "descending" : "ascending";
      head.setAttribute("aria-sort", this.columns[at] === column ? direction : "none");
    });
    this.refresh();
  }

  filter(fits) {
    this.kept = this.rows.filter(fits);
    this.refresh();
    return this.kept.length;
  }

  refresh() {
    const { column, descending } = this.sorting;
    this.order = [...this.kept];
    if (column) {
      const sign = descending ? -1 : 1;
      const keys = new Map(this.order.map((row) => [row, column.key(row)]));
      this.order.sort((a, b) => sign * compared(keys.get(a), keys.get(b)));
    }
    this.shown = 0;
    this.body.replaceChildren();
    this.scroll.scrollTop = 0;
    this.more(BATCH);
  }

  grow() {
    const { scrollTop, clientHeight, scrollHeight } = this.scroll;
    if (scrollTop + 2 * clientHeight > scrollHeight) this.more(BATCH);
  }

  showAll() {
    this.more(MOST_AT_ONCE);
  }

  more(number) {
    const next = this.order.slice(this.shown, this.shown + number);
    this.body.append(...next.flatMap((row, at) => this.line(row, this.shown + at)));
    this.shown += next.length;
    const total = this.rows.length === this.order.length ? "" : ` of ${count(this.rows.length)}`;
    this.count.textContent = `${plural(this.order.length, this.noun)}${total}`;
    const left = this.order.length - this.shown;
    this.all.hidden = left === 0;
    this.all.textContent = `Show ${count(Math.min(left, MOST_AT_ONCE))} more`;
    this.foot.hidden = left === 0 && this.rows.length < 12;
  }

  /** The row's elements: itself, and what is open under it. */
  line(row, at) {
    let element = this.elements.get(row);
    if (!element) {
      element = el("tr", { class: "row" }, this.columns.map((column, index) => this.cell(row, column, index)));
      if (this.details) {
        element.addEventListener("click", (event) => {
          const selected = String(getSelection()) !== "";
          if (event.target.closest(".toggle") || !selected) this.toggle(row);
        });
      }
      this.elements.set(row, element);
    }
    element.setAttribute("aria-rowindex", at + 2);
    return this.opened.has(row) ? [element, this.detail(row)] : [element];
  }

  cell(row, column, index) {
    const content = column.cell(row);
    if (index > 0) return el("td", { class: column.kind ?? "" }, content);
    if (!this.details) return el("th", { scope: "row" }, content);
    const toggle = el("button", { class: "toggle", type: "button", "aria-expanded": "false" }, el("span", {}, content));
    return el("th", { scope: "row" }, toggle);
  }

  detail(row) {
    const content = el("div", { class: "detail-body" }, this.details(row));
    return el("tr", { class: "detail" }, el("td", { colspan: this.columns.length }, content));
  }

  toggle(row, open = !this.opened.has(row)) {
    const element = this.elements.get(row);
    if (open === this.opened.has(row)) return;
    if (open) {
      this.opened.add(row);
      element.after(this.detail(row));
    } else {
      this.opened.delete(row);
      element.nextElementSibling.remove();
    }
    element.classList.toggle("open", open);
    element.querySelector(".toggle").setAttribute("aria-expanded", String(open));
  }

  /** Opens a row wherever it is, and goes there. */
  reveal(row) {
    const at = this.order.indexOf(row);
    if (at >= this.shown) this.more(at + BATCH - this.shown);
    this.toggle(row, true);
    const element = this.elements.get(row);
    const head = this.heads[0].offsetHeight;
    this.scroll.scrollTop = element.offsetTop - head;
    this.element.scrollIntoView({ block: "start" });
    element.querySelector(".toggle").focus({ preventScroll: true });
  }

  /** Arrow keys go from row to row. */
  move(event) {
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    const element = event.target.closest("tr.row");
    if (!step || !element) return;
    const rows = [...this.body.querySelectorAll(":scope > tr.row")];
    const next = rows[rows.indexOf(element) + step];
    if (!next) return;
    event.preventDefault();
    next.querySelector(".toggle").focus();
  }
}

const collator = new Intl.Collator("en", { numeric: true });

function compared(a, b) {
  if (typeof a === "string" || typeof b === "string") return collator.compare(String(a), String(b));
  return (a ?? -1) - (b ?? -1);
}
