// Columns of a group: base64 of little-endian numbers, and images.

import { attribute, h } from "./dom.js";

const TYPES = { uint8: Uint8Array, uint16: Uint16Array, int32: Int32Array, float32: Float32Array, float64: Float64Array, int64: BigInt64Array };
const MOST_IMAGES = 16;
const MOST_PIXELS = 2 ** 24;
const MAGIC = [
  ["image/png", [0x89, 0x50, 0x4e, 0x47]],
  ["image/jpeg", [0xff, 0xd8, 0xff]],
  ["image/gif", [0x47, 0x49, 0x46, 0x38]],
  ["image/webp", [0x52, 0x49, 0x46, 0x46]],
];

/** Return the number that 16 bits are: browsers have had Float16Array for too short a time. */
function half(bits) {
  const [exponent, fraction] = [(bits >> 10) & 31, bits & 1023];
  const special = fraction ? NaN : Infinity;
  const size = exponent === 31 ? special : exponent ? (1024 + fraction) * 2 ** (exponent - 25) : fraction * 2 ** -24;
  return bits & 0x8000 ? -size : size;
}

/** Return the numbers of a column, or null where this page has no type for them. */
export function decode(base64, dtype) {
  if (dtype === "float16") {
    const bits = decode(base64, "uint16");
    return bits && Float32Array.from(bits, half);
  }
  const type = TYPES[dtype];
  if (!type || typeof base64 !== "string") return null;
  const packed = atob(base64);
  const bytes = new Uint8Array(packed.length);
  for (let index = 0; index < packed.length; index += 1) bytes[index] = packed.charCodeAt(index);
  return new type(bytes.buffer);
}

/** Return an element for each image that a column holds: pixels [H, W, 1 or 3], [N, H, W, 1 or 3], or a file's bytes. */
export function imagesOf(name, column) {
  if (column.dtype !== "uint8") return [];
  const { shape } = column;
  const channels = shape.at(-1);
  if ((shape.length === 3 || shape.length === 4) && (channels === 1 || channels === 3)) return pixelImages(name, column);
  if (shape.length !== 1) return [];
  const bytes = decode(column.values, "uint8");
  const type = MAGIC.find(([, magic]) => magic.every((byte, index) => bytes[index] === byte))?.[0];
  if (!type) return [];
  const image = h("img", { class: "picture", alt: `image of column ${name}`, src: URL.createObjectURL(new Blob([bytes], { type })) });
  for (const end of ["load", "error"]) image.addEventListener(end, () => URL.revokeObjectURL(image.src), { once: true });
  return [image];
}

function pixelImages(name, column) {
  const [height, width, channels] = column.shape.slice(-3);
  const count = column.shape.length === 4 ? Math.min(column.shape[0], MOST_IMAGES) : 1;
  const size = height * width * channels;
  if (!size || height * width > MOST_PIXELS) return [];
  const pixels = decode(column.values, "uint8");
  return Array.from({ length: count }, (_, index) => {
    const canvas = h("canvas", { class: "picture", width, height, role: "img" });
    attribute(canvas, "aria-label", `image ${count > 1 ? `${index} ` : ""}of column ${name}, ${width} by ${height} pixels`);
    const context = canvas.getContext("2d");
    const image = context.createImageData(width, height);
    for (let at = 0; at < height * width; at += 1) {
      for (let channel = 0; channel < 3; channel += 1) {
        image.data[4 * at + channel] = pixels[index * size + at * channels + (channels === 3 ? channel : 0)];
      }
      image.data[4 * at + 3] = 255;
    }
    context.putImageData(image, 0, 0);
    if (width < 200) canvas.classList.add("small");
    return canvas;
  });
}
