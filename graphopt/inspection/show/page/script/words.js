// Facts in words.

/** Text with the characters made visible that change the text around them, or show nothing. */
function visible(text) {
  return String(text).replace(
    /[\p{Cc}\p{Cf}\p{Zl}\p{Zp}\p{Cs}]/gu,
    (character) => `\\u{${character.codePointAt(0).toString(16)}}`,
  );
}

function short(text, most = 160) {
  const whole = visible(text);
  return whole.length <= most ? whole : `${whole.slice(0, most / 2)}…${whole.slice(-most / 2)}`;
}

/** A name that fits where there is little room: its last part stays, and what is before it is cut off. */
function fitted(name) {
  const text = short(name, 200);
  const last = Math.max(text.lastIndexOf("."), text.lastIndexOf("/"), text.length - 24);
  if (text.length < 10 || last <= 0) return text;
  return [el("span", { class: "cut" }, text.slice(0, last)), el("span", { class: "kept" }, text.slice(last))];
}

const count = (number) => (number === null ? "unknown" : number.toLocaleString("en-US"));

const plural = (number, noun, several = `${noun}s`) => `${count(number)} ${number === 1 ? noun : several}`;

function scaled(number, base, units) {
  let unit = 0;
  let left = number;
  while (left >= base * 0.9995 && unit < units.length - 1) {
    left /= base;
    unit += 1;
  }
  const digits = unit === 0 || left >= 100 ? 0 : left >= 10 ? 1 : 2;
  return `${left.toFixed(digits)} ${units[unit]}`;
}

function bytes(number) {
  return number === null ? "unknown" : scaled(number, 1024, ["B", "KiB", "MiB", "GiB", "TiB", "PiB"]);
}

function flops(number) {
  const units = ["FLOP", "kFLOP", "MFLOP", "GFLOP", "TFLOP", "PFLOP"];
  return number === null ? "unknown" : scaled(number, 1000, units);
}

/** A number in six digits, small ones with an exponent; what JSON has no number for is text already. */
function real(value) {
  if (typeof value !== "number") return String(value);
  const number = Number(value.toPrecision(6));
  return number && Math.abs(number) < 1e-4 ? number.toExponential() : String(number);
}

/** A number in few digits, small and large ones with an exponent. */
function few(value, digits) {
  if (typeof value !== "number") return value;
  const size = Math.abs(value);
  return size && (size < 1e-3 || size >= 1e6) ? value.toExponential(digits - 1) : String(Number(value.toPrecision(digits)));
}

/** The same of what may not be there. */
function measured(value, digits = 3) {
  return value === null ? "–" : few(value, digits);
}

function percent(share) {
  return share > 0 && share < 0.001 ? "< 0.1 %" : `${(100 * share).toFixed(1)} %`;
}

/** The number of elements of a known shape. */
const elementsOf = (shape) => shape.reduce((size, dimension) => size * dimension, 1);

function shapeText(shape) {
  if (shape === null) return "any shape";
  if (shape.length === 0) return "scalar";
  return shape.map((dimension) => (dimension === null ? "?" : short(dimension, 40))).join(" × ");
}

const yes = (value) => (value ? "yes" : "no");

const scheduleKey = (schedule) => (typeof schedule === "number" ? schedule : schedule ? Infinity : -1);

const words = (name) => visible(name).replaceAll("_", " ");

/** The sizes that were assumed for open dimensions. */
function assumed() {
  const sizes = Object.entries(facts.memory.sizes);
  return sizes.length ? `with ${sizes.map(([name, size]) => `${short(name, 40)} = ${size}`).join(", ")}` : "";
}
