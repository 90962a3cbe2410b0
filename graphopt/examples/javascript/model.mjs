/**
 * Reads what a training graph declares about itself.
 *
 * ONNX Runtime shows JavaScript neither `training_info` nor `metadata_props`, so this reads them
 * from the file. An ONNX file is one protobuf message; the numbers are those of onnx.proto.
 */

const MODEL = { irVersion: 1, graph: 7, opsetImport: 8, metadata: 14, trainingInfo: 20 };
const TRAINING = { initialization: 1, initializationBinding: 3, updateBinding: 4 };
const ENTRY = { key: 1, value: 2 };

/**
 * @param {Uint8Array} bytes The training graph's file.
 * @returns {{
 *   binding: Object<string, string>,
 *   initialization: Uint8Array,
 *   initializationBinding: Object<string, string>,
 *   views: Object<string, [string, number[], number][]>,
 * }} `binding` names the output that feeds each input at the next step. `initialization` is a
 *   model without inputs, and `initializationBinding` names its output that is the first value of
 *   each input. `views` has the parts of each carried tensor: name, shape, offset in elements.
 */
export function declared(bytes) {
  const model = fields(bytes);
  const info = model.find(({ number }) => number === MODEL.trainingInfo);
  if (!info) {
    throw new Error(
      "this file is no training graph: it has no training_info; make one with graphopt",
    );
  }
  const training = fields(info.value);
  const initialization = training.find(({ number }) => number === TRAINING.initialization).value;
  const copied = model.filter(({ number }) =>
    [MODEL.irVersion, MODEL.opsetImport].includes(number),
  );
  return {
    binding: entries(training, TRAINING.updateBinding),
    initialization: concatenated([
      ...copied.map(({ raw }) => raw),
      Uint8Array.of((MODEL.graph << 3) | 2, ...varint(initialization.length)),
      initialization,
    ]),
    initializationBinding: entries(training, TRAINING.initializationBinding),
    views: JSON.parse(entries(model, MODEL.metadata)["graphopt.views"]),
  };
}

/** The fields of a message: `number`, `value` (bytes, or a number), and `raw`, the whole field. */
function fields(bytes) {
  const found = [];
  let at = 0;
  const next = () => {
    let value = 0;
    for (let scale = 1; ; scale *= 128) {
      const byte = bytes[at++];
      if (byte === undefined) throw new Error("the file is damaged: it ends within a number");
      value += (byte & 127) * scale;
      if (byte < 128) return value;
    }
  };
  while (at < bytes.length) {
    const start = at;
    const tag = next();
    const kind = tag % 8;
    let value;
    if (kind === 0) value = next();
    else {
      const size = { 1: 8, 2: undefined, 5: 4 }[kind] ?? next();
      value = bytes.subarray(at, (at += size));
    }
    if (at > bytes.length) throw new Error("the file is damaged: it ends within a field");
    found.push({ number: (tag - kind) / 8, value, raw: bytes.subarray(start, at) });
  }
  return found;
}

/** Those fields that are entries of key and value, as an object. */
function entries(message, wanted) {
  const text = new TextDecoder();
  return Object.fromEntries(
    message
      .filter(({ number }) => number === wanted)
      .map(({ value: entry }) => {
        const parts = new Map(
          fields(entry).map(({ number, value }) => [number, text.decode(value)]),
        );
        return [parts.get(ENTRY.key), parts.get(ENTRY.value)];
      }),
  );
}

function varint(number) {
  const bytes = [];
  for (; number >= 128; number = Math.floor(number / 128)) bytes.push((number % 128) | 128);
  return [...bytes, number];
}

function concatenated(parts) {
  const whole = new Uint8Array(parts.reduce((size, part) => size + part.length, 0));
  let at = 0;
  for (const part of parts) {
    whole.set(part, at);
    at += part.length;
  }
  return whole;
}
