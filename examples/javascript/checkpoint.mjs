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

/** A state, as `Trainer.state()` gives it, as the bytes of a file. */
export function encode(state) {
  const header = { __metadata__: { format: "graphopt", version: "1" } };
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
    parts.push(new Uint8Array(data.buffer, data.byteOffset, data.byteLength));
    size += data.byteLength;
  }
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
