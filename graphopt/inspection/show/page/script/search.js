// The search.

/** What is searched for: {words, group, op, bucket}, all in lower case. */
function parsedQuery(text) {
  const query = { words: [], fields: [] };
  for (const word of text.toLowerCase().split(/\s+/).filter(Boolean)) {
    const field = /^(group|op|bucket):(.*)$/.exec(word);
    if (!field) query.words.push(word);
    else if (field[2]) query.fields.push([field[1], field[2]]);
  }
  query.empty = query.words.length + query.fields.length === 0;
  return query;
}

function parameterFits(parameter, query) {
  const lower = (value) => String(value ?? "none").toLowerCase();
  const own = { group: lower(parameter.group), op: lower(parameter.op_type), bucket: lower(parameter.bucket) };
  const name = lower(parameter.name);
  return (
    query.words.every((word) => name.includes(word)) &&
    query.fields.every(([field, value]) => own[field] === value)
  );
}

/** A row of a table fits by its name. */
function nameFits(name, query) {
  const lower = name.toLowerCase();
  return query.words.every((word) => lower.includes(word));
}

const searchers = [];

/** Puts a table into its section, and lets the search look through it, at a text of each row. */
function searchable(id, table, textOf, noun = table.noun) {
  byId(id).append(table.element);
  searchers.push((query) => plural(table.filter((row) => nameFits(textOf(row), query)), noun));
}

/** Where the Enter key goes. */
let firstFound = null;

function search() {
  const query = parsedQuery(byId("search").value);
  const found = searchers.map((searcher) => searcher(query));
  byId("found").textContent = query.empty ? "" : found.filter(Boolean).join(", ");
}

function searchFor(text) {
  byId("search").value = text;
  search();
}
