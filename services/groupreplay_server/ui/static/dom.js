// Builds and updates the page. Data gets into it as text nodes and attributes only, never as markup.

const SVG = "http://www.w3.org/2000/svg";

/** Return an element. A property that is a function listens; true and false set and leave out. */
export function h(tag, properties = {}, ...children) {
  return fill(document.createElement(tag), properties, children);
}

/** Return an SVG element. */
export function s(tag, properties = {}, ...children) {
  return fill(document.createElementNS(SVG, tag), properties, children);
}

function fill(element, properties, children) {
  for (const [name, value] of Object.entries(properties)) {
    if (typeof value === "function") element.addEventListener(name, value);
    else attribute(element, name, value);
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return element;
}

/** Set an attribute where it differs; null and false remove it. */
export function attribute(element, name, value) {
  if (value === null || value === undefined || value === false) element.removeAttribute(name);
  else if (element.getAttribute(name) !== String(value)) element.setAttribute(name, value === true ? "" : value);
}

/** Set the text of an element where it differs, so that selections and screen readers are left alone. */
export function text(element, value) {
  const wanted = String(value);
  if (element.textContent !== wanted) element.textContent = wanted;
}

const keys = new WeakMap();

/**
 * Make the children of a parent those of items, in their order: each is made once per key and then updated in place,
 * so that focus, selection and scroll position stay.
 */
export function sync(parent, items, keyOf, make, update = () => {}) {
  const known = new Map([...parent.children].map((child) => [keys.get(child), child]));
  let place = parent.firstElementChild;
  for (const item of items) {
    const key = keyOf(item);
    let child = known.get(key);
    known.delete(key);
    if (!child) {
      child = make(item);
      keys.set(child, key);
    }
    if (child === place) place = place.nextElementSibling;
    else move(parent, child, place);
    update(child, item);
  }
  for (const child of known.values()) child.remove();
}

function move(parent, child, place) {
  const focused = child.contains(document.activeElement) ? document.activeElement : null;
  parent.insertBefore(child, place);
  if (focused) focused.focus({ preventScroll: true });
}

/** Update a row of cells. A value is a text, {text, look} with a class of its own, or an element that stays. */
export function cells(row, values) {
  values.forEach((value, index) => {
    const cell = row.children[index];
    if (value instanceof Node) {
      if (cell.firstChild !== value) cell.replaceChildren(value);
    } else if (value !== null && typeof value === "object") {
      if (!cell.firstElementChild) cell.replaceChildren(h("span"));
      attribute(cell.firstElementChild, "class", value.look);
      text(cell.firstElementChild, value.text);
    } else text(cell, value);
  });
}

/**
 * Let arrow keys, Home and End move the focus among the rows of a list, of which one is in the tab order. Enter opens
 * the row's link.
 */
export function rove(list, selector) {
  const rows = () => [...list.querySelectorAll(selector)];
  const choose = (row) => {
    for (const other of rows()) attribute(other, "tabindex", other === row ? 0 : -1);
  };
  list.addEventListener("focusin", (event) => {
    const row = event.target.closest(selector);
    if (row) choose(row);
  });
  list.addEventListener("keydown", (event) => {
    const all = rows();
    const at = all.indexOf(document.activeElement);
    if (at < 0 || event.altKey || event.ctrlKey || event.metaKey) return;
    const to = { ArrowDown: at + 1, ArrowUp: at - 1, Home: 0, End: all.length - 1 }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    const row = all[Math.max(0, Math.min(all.length - 1, to))];
    choose(row);
    row.focus();
  });
  return () => {
    const all = rows();
    if (all.length && !all.some((row) => row.getAttribute("tabindex") === "0")) choose(all[0]);
  };
}
