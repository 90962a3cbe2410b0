/** A pad to draw a digit on, and what the network takes it for. */

const GRID = 32; // the data are drawings of 32 x 32, counted in blocks of 4 x 4

/**
 * Lets the page's pad be drawn on.
 *
 * @returns What takes a function that recognizes: it is asked whenever something was drawn, and
 *   again with each new one.
 */
export function listen() {
  const pad = document.getElementById("pad");
  const drawn = pad.getContext("2d", { willReadFrequently: true });
  let recognize = async () => null;
  let at = null;

  const show = async () => {
    const pixels = digit(drawn.getImageData(0, 0, pad.width, pad.height));
    bars(pixels && (await recognize(pixels)));
  };
  const place = ({ offsetX, offsetY }) => [
    (offsetX * pad.width) / pad.clientWidth,
    (offsetY * pad.height) / pad.clientHeight,
  ];
  pad.addEventListener("pointerdown", (event) => {
    if (event.isTrusted) pad.setPointerCapture(event.pointerId);
    at = place(event);
  });
  pad.addEventListener("pointermove", (event) => {
    if (!at) return;
    const to = place(event);
    Object.assign(drawn, { lineWidth: pad.width / 9, lineCap: "round", strokeStyle: "#000" });
    drawn.beginPath();
    drawn.moveTo(...at);
    drawn.lineTo(...to);
    drawn.stroke();
    at = to;
  });
  for (const name of ["pointerup", "pointercancel"]) {
    pad.addEventListener(name, () => {
      at = null;
      show();
    });
  }
  document.getElementById("clear").addEventListener("click", () => {
    drawn.clearRect(0, 0, pad.width, pad.height);
    show();
  });
  return (better) => {
    recognize = better;
    show();
  };
}

/**
 * What is drawn as the data have it: as high as the grid, in its middle, 8 x 8 blocks of 0 to 16.
 *
 * @param {ImageData} image Of which the opaque pixels are ink.
 * @returns {number[] | null} Null where nothing is drawn.
 */
export function digit({ data, width, height }) {
  const isInk = (x, y) => data[4 * (y * width + x) + 3] > 127;
  let [left, right, top, bottom] = [width, -1, height, -1];
  for (let y = 0; y < height; y++) {
    for (let x = 0; x < width; x++) {
      if (!isInk(x, y)) continue;
      [left, right] = [Math.min(left, x), Math.max(right, x)];
      [top, bottom] = [Math.min(top, y), Math.max(bottom, y)];
    }
  }
  if (right < 0) return null;
  const scale = Math.max(bottom - top + 1, right - left + 1) / GRID;
  const [middleX, middleY] = [(left + right + 1) / 2, (top + bottom + 1) / 2];
  const pixels = new Array(64).fill(0);
  for (let row = 0; row < GRID; row++) {
    for (let column = 0; column < GRID; column++) {
      const x = Math.floor(middleX + (column + 0.5 - GRID / 2) * scale);
      const y = Math.floor(middleY + (row + 0.5 - GRID / 2) * scale);
      const inside = x >= 0 && x < width && y >= 0 && y < height;
      if (inside && isInk(x, y)) pixels[8 * Math.floor(row / 4) + Math.floor(column / 4)] += 1;
    }
  }
  return pixels;
}

function bars(likely) {
  const best = likely ? likely.indexOf(Math.max(...likely)) : null;
  document.getElementById("answer").textContent =
    best === null ? "" : `This is a ${best}, to ${(100 * likely[best]).toFixed(0)} %.`;
  for (const [digit, bar] of [...document.getElementById("likely").children].entries()) {
    bar.style.setProperty("--likely", likely ? likely[digit] : 0);
    bar.classList.toggle("best", digit === best);
  }
}
