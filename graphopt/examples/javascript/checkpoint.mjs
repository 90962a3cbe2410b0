/**
 * Checkpoints in graphopt's format, safetensors: what is trained in JavaScript is exported in Python
 * (`graphopt export train.onnx --checkpoint checkpoint.safetensors`), and the other way round.
 */

const DTYPES = { float32: "F32", float16: "F16", float64: "F64", int64: "I64", int32: "I32" };
const ARRAYS = {
  F32: Float32Array,
  F16: Uint16Array, // a Tensor takes it for a Float16Array, where there is one
  F64: Float64Array,
  I64: BigInt64Array,
  I32: Int32Array,
};
const ALIGNMENT = 8;
const CRC_TABLE = Uint32Array.from({ length: 256 }, (_, byte) => {
  let value = byte;
  for (let bit = 0; bit < 8; bit++) value = value & 1 ? (value >>> 1) ^ 0xedb88320 : value >>> 1;
  return value;
});

/** The CRC-32 of texts and bytes, one after the other, in hexadecimal digits. */
function checksum(...parts) {
  let value = 0xffffffff;
  for (const part of parts) {
    const bytes = typeof part === "string" ? new TextEncoder().encode(part) : part;
    for (const byte of bytes) value = CRC_TABLE[(value ^ byte) & 0xff] ^ (value >>> 8);
  }
  return ((value ^ 0xffffffff) >>> 0).toString(16).padStart(8, "0");
}

/** What the file says of itself: the checksum of each tensor, and one of all of this. */
function described(checksums) {
  const metadata = {
    checksums: JSON.stringify(checksums),
    format: "graphopt",
    graph: "null",
    note: "{}",
    version: "2",
  };
  const lines = Object.keys(metadata).map((key) => `${key}=${metadata[key]}\n`); // sorted by key
  return { ...metadata, checksum: checksum(...lines) };
}

/** A state, as `Trainer.state()` gives it, as the bytes of a file. */
export function encode(state) {
  const header = {};
  const checksums = {};
  const parts = [];
  let size = 0;
  // Large elements first, so that every tensor begins at a multiple of its element's size.
  const tensors = Object.entries(state).sort(
    ([, a], [, b]) => b.data.BYTES_PER_ELEMENT - a.data.BYTES_PER_ELEMENT,
  );
  for (const [name, { type, dims, data }] of tensors) {
    header[name] = {
      dtype: DTYPES[type],
      shape: dims,
      data_offsets: [size, size + data.byteLength],
    };
    const bytes = new Uint8Array(data.buffer, data.byteOffset, data.byteLength);
    checksums[name] = checksum(`${name}\n${DTYPES[type]}\n${dims.join(",")}\n`, bytes);
    parts.push(bytes);
    size += data.byteLength;
  }
  header.__metadata__ = described(checksums);
  const text = JSON.stringify(header);
  const encoded = new TextEncoder().encode(text);
  const padding = -encoded.length & (ALIGNMENT - 1);
  const file = new Uint8Array(8 + encoded.length + padding + size);
  new DataView(file.buffer).setBigUint64(0, BigInt(encoded.length + padding), true);
  file.set(encoded, 8);
  file.fill(0x20, 8 + encoded.length, 8 + encoded.length + padding);
  let at = 8 + encoded.length + padding;
  for (const part of parts) {
    file.set(part, at);
    at += part.length;
  }
  return file;
}

/** The tensors of a file, for `Trainer.restore()`. */
export function decode(ort, file) {
  const length = Number(new DataView(file.buffer, file.byteOffset).getBigUint64(0, true));
  const header = JSON.parse(new TextDecoder().decode(file.subarray(8, 8 + length)));
  const names = Object.fromEntries(Object.entries(DTYPES).map(([type, dtype]) => [dtype, type]));
  delete header.__metadata__;
  return Object.fromEntries(
    Object.entries(header).map(
      ([
        name,
        {
          dtype,
          shape,
          data_offsets: [begin, end],
        },
      ]) => {
        const bytes = file.slice(8 + length + begin, 8 + length + end);
        return [name, new ort.Tensor(names[dtype], new ARRAYS[dtype](bytes.buffer), shape)];
      },
    ),
  );
}
