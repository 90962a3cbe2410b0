/** The handwritten digits: their batches, their training, and how many are recognised. */

const BATCH_SIZE = 32;

/** Samples as feeds of the graph: all, or those of a batch. */
export function feeds(ort, { pixels, labels }, start = 0, end = labels.length) {
  const x = Float32Array.from(pixels.slice(64 * start, 64 * end), (pixel) => pixel / 16);
  const classes = BigInt64Array.from(labels.slice(start, end), BigInt);
  return {
    x: new ort.Tensor("float32", x, [classes.length, 1, 8, 8]),
    labels: new ort.Tensor("int64", classes, [classes.length]),
  };
}

/** All samples in batches; the last one may be smaller. */
export function batches(ort, samples) {
  const count = samples.labels.length;
  return Array.from({ length: Math.ceil(count / BATCH_SIZE) }, (_, index) =>
    feeds(ort, samples, index * BATCH_SIZE, Math.min(count, (index + 1) * BATCH_SIZE)),
  );
}

/** The part of the samples whose label has the largest logit, from 0 to 1. */
export function accuracy(logits, labels) {
  const classes = logits.dims[1];
  const right = labels.filter((label, row) => {
    const scores = logits.data.subarray(row * classes, (row + 1) * classes);
    return scores.indexOf(Math.max(...scores)) === label;
  });
  return right.length / labels.length;
}

/**
 * Trains, and reports after each epoch.
 *
 * @param {Object[]} epoch The batches of an epoch.
 * @param {number} epochs How often they are gone through.
 * @param step Takes a batch, gives its loss.
 * @param evaluate Gives the accuracy.
 * @param report Takes `{ epoch, loss, accuracy, milliseconds }`: the mean loss of the epoch, and the
 *   mean time of a step.
 */
export async function train(epoch, epochs, { step, evaluate, report }) {
  for (let count = 1; count <= epochs; count++) {
    const begin = performance.now();
    let sum = 0;
    for (const batch of epoch) sum += await step(batch);
    const milliseconds = (performance.now() - begin) / epoch.length;
    const loss = sum / epoch.length;
    await report({ epoch: count, loss, accuracy: await evaluate(), milliseconds });
  }
}

/** What `report` takes, as text. */
export function line({ epoch, loss, accuracy, milliseconds }) {
  return [
    `epoch ${epoch}`,
    `loss ${loss.toFixed(4)}`,
    `test accuracy ${(100 * accuracy).toFixed(2)} %`,
    `${milliseconds.toFixed(1)} ms a step`,
  ].join("  ");
}
