// Texts and elements. Every string that comes from a pool becomes a text node, never markup.

export function el(tag, options = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(options)) {
    if (value === null || value === undefined || value === false) continue;
    if (name === "on") for (const [kind, work] of Object.entries(value)) made.addEventListener(kind, work);
    else if (name === "class") made.className = value;
    else made.setAttribute(name, value === true ? "" : String(value));
  }
  for (const child of children) if (child !== null && child !== undefined) made.append(child);
  return made;
}

export function fill(place, ...children) {
  place.replaceChildren(...children.filter((each) => each !== null && each !== undefined));
}

export function table(place, heads, rows, empty) {
  if (!rows.length) {
    fill(place, el("tbody", {}, el("tr", {}, el("td", { class: "empty" }, empty))));
    return;
  }
  const cells = (row) =>
    row.map((cell, at) => {
      const kind = heads[at][1] || null;
      return cell instanceof Node ? el("td", { class: kind }, cell) : el("td", { class: kind, title: cell }, String(cell));
    });
  const head = el("tr", {}, ...heads.map(([name, kind]) => el("th", { scope: "col", class: kind || null }, name)));
  fill(place, el("thead", {}, head), el("tbody", {}, ...rows.map((row) => el("tr", {}, ...cells(row)))));
}

export const state = (name, kind) => el("span", { class: `state ${kind || name}` }, name);
export const link = (text, work) => el("button", { class: "name", type: "button", title: text, on: { click: work } }, text);

export const count = (value) => (value === null || value === undefined ? "–" : Math.round(value).toLocaleString("en"));

export function rate(value) {
  if (value === null || value === undefined) return "–";
  return value >= 100 ? count(value) : value >= 10 ? value.toFixed(0) : value.toFixed(value ? 1 : 0);
}

export function span(seconds) {
  if (seconds === null || seconds === undefined || !isFinite(seconds)) return "–";
  const value = Math.max(0, seconds);
  if (!value) return "0";
  if (value < 0.0995) return `${(value * 1000).toFixed(value < 0.00995 ? 1 : 0)} ms`;
  if (value < 99.5) return `${value.toPrecision(2).includes("e") ? value.toFixed(0) : Number(value.toPrecision(2))} s`;
  if (value < 5970) return `${(value / 60).toFixed(0)} min`;
  return value < 172800 ? `${(value / 3600).toFixed(1)} h` : `${(value / 86400).toFixed(0)} days`;
}

export function bytes(value) {
  if (value === null || value === undefined) return "–";
  const step = value >= 1e9 ? [1e9, "GB"] : value >= 1e6 ? [1e6, "MB"] : [1e3, "kB"];
  return `${(value / step[0]).toPrecision(3)} ${step[1]}`;
}

export const clock = (at) => (at ? new Date(at * 1000).toLocaleTimeString("en-GB") : "–");
export const plural = (number, word) => `${count(number)} ${word}${number === 1 ? "" : "s"}`;
export const short = (text, most) => (text.length > most ? `${text.slice(0, most - 1)}…` : text);
const collator = new Intl.Collator("en", { numeric: true });
export const inOrder = (one, other) => collator.compare(one, other);
