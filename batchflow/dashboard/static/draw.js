// What is drawn on canvas: lines, the grid of nodes, the stream of tasks. Nothing here knows the connection.
import { span, short, inOrder } from "./text.js";

export function colours() {
  const style = getComputedStyle(document.documentElement);
  const of = (name) => style.getPropertyValue(`--${name}`).trim();
  const dark = matchMedia("(prefers-color-scheme: dark)").matches;
  const hues = [205, 168, 262, 32, 128, 228, 320, 78];
  return {
    card: of("card"), line: of("line"), text: of("text"), quiet: of("quiet"), faint: of("faint"), accent: of("accent"),
    busy: of("busy"), idle: of("idle"), spot: of("spot"), starting: of("starting"), bad: of("bad"), warn: of("warn"),
    commands: hues.map((hue) => (dark ? `hsl(${hue} 34% 58%)` : `hsl(${hue} 38% 52%)`)),
  };
}

// Make a canvas as sharp as the screen, and return its context with its size in CSS pixels.
export function prepare(canvas, height) {
  const width = canvas.clientWidth, scale = window.devicePixelRatio || 1;
  const tall = height ?? canvas.clientHeight;
  if (height !== undefined) canvas.style.height = `${height}px`;
  const [w, h] = [Math.round(width * scale), Math.round(tall * scale)];
  if (canvas.width !== w || canvas.height !== h) [canvas.width, canvas.height] = [w, h];
  const context = canvas.getContext("2d");
  context.setTransform(scale, 0, 0, scale, 0, 0);
  context.clearRect(0, 0, width, tall);
  context.font = "11px system-ui, sans-serif";
  return [context, width, tall];
}

function ceiling(value) {
  if (!(value > 0)) return 1;
  const power = 10 ** Math.floor(Math.log10(value));
  return [1, 2, 2.5, 5, 10].map((step) => step * power).find((step) => step >= value * 0.999);
}

export function lines(canvas, series, sets, palette, format) {
  const [context, width, height] = prepare(canvas);
  const [left, right, top, bottom] = [46, 6, 8, 18];
  const most = ceiling(Math.max(...sets.flatMap((set) => set.values.filter((value) => value !== null)), 0));
  const across = (at) => left + ((width - left - right) * at) / Math.max(1, sets[0].values.length - 1);
  const up = (value) => height - bottom - ((height - top - bottom) * value) / most;
  context.strokeStyle = palette.line;
  context.fillStyle = palette.quiet;
  context.lineWidth = 1;
  context.textAlign = "right";
  for (const share of [0, 0.5, 1]) {
    const y = Math.round(up(most * share)) + 0.5;
    context.beginPath();
    context.moveTo(left, y);
    context.lineTo(width - right, y);
    context.stroke();
    context.fillText(format(most * share), left - 8, y + 4);
  }
  const seconds = sets[0].values.length * series.step;
  for (const [share, align] of [[0, "left"], [0.5, "center"], [1, "right"]]) {
    context.textAlign = align;
    const ago = Math.round((seconds * (1 - share)) / 60);
    context.fillText(ago ? `${ago} min ago` : "now", left + (width - left - right) * share, height - 4);
  }
  for (const set of sets) {
    context.beginPath();
    let begun = null;
    set.values.forEach((value, at) => {
      if (value === null) begun = null;
      else if (begun === null) context.moveTo(across(at), up(value)), (begun = at);
      else context.lineTo(across(at), up(value));
      if (value !== null && set.values[at + 1] === null && begun === at) context.lineTo(across(at) + 1.5, up(value));
    });
    context.strokeStyle = set.colour;
    context.lineWidth = 1.6;
    context.lineJoin = "round";
    context.stroke();
    if (set.fill) {
      context.lineTo(across(set.values.length - 1), up(0));
      context.lineTo(across(0), up(0));
      context.globalAlpha = 0.09;
      context.fillStyle = set.colour;
      context.fill();
      context.globalAlpha = 1;
    }
  }
}

// The grid: a card for each node while there are few, a square for each when there are many.
export class Grid {
  constructor(canvas) {
    this.canvas = canvas;
    this.chosen = -1;
    this.nodes = [];
  }

  draw(nodes, palette) {
    this.nodes = nodes;
    const width = this.canvas.clientWidth;
    this.cards = nodes.length <= 40;
    const gap = this.cards ? 8 : 3;
    const least = this.cards ? 146 : nodes.length > 400 ? 15 : 22;
    this.columns = Math.max(1, Math.floor((width + gap) / (least + gap)));
    if (this.cards) this.columns = Math.min(this.columns, Math.max(nodes.length, Math.floor(width / 340)));
    this.size = this.cards ? (width + gap) / this.columns - gap : least;
    this.tall = this.cards ? 46 : least;
    this.gap = gap;
    const rows = Math.max(1, Math.ceil(nodes.length / this.columns));
    const [context] = prepare(this.canvas, rows * (this.tall + gap) - gap);
    nodes.forEach((node, at) => this.cell(context, node, at, palette));
  }

  place(at) {
    return [(at % this.columns) * (this.size + this.gap), Math.floor(at / this.columns) * (this.tall + this.gap)];
  }

  cell(context, node, at, palette) {
    const [x, y] = this.place(at);
    const bad = node.broken, share = node.slots ? node.busy / node.slots : 0;
    const base = bad ? palette.bad : node.agent && node.agent !== "starting" ? palette.idle : palette.starting;
    context.fillStyle = base;
    if (!this.cards) {
      context.fillRect(x, y, this.size, this.tall);
      if (!bad && share) {
        context.fillStyle = palette.busy;
        context.fillRect(x, y + this.tall * (1 - share), this.size, this.tall * share);
      }
      if (!node.dedicated) this.frame(context, x, y, palette.spot, 2);
    } else {
      context.strokeStyle = node.dedicated ? palette.line : palette.spot;
      context.lineWidth = 1;
      context.beginPath();
      context.roundRect(x + 0.5, y + 0.5, this.size - 1, this.tall - 1, 7);
      context.stroke();
      context.fillStyle = palette.text;
      context.textAlign = "left";
      context.font = "600 12px system-ui, sans-serif";
      context.fillText(short(node.host || node.id, Math.floor(this.size / 11)), x + 10, y + 17);
      context.font = "11px system-ui, sans-serif";
      context.fillStyle = bad ? palette.bad : palette.quiet;
      context.textAlign = "right";
      const word = bad ? "in trouble" : node.agent ? `${node.busy}/${node.slots}` : node.state;
      context.fillText(word, x + this.size - 10, y + 17);
      const slots = Math.max(1, Math.min(node.slots, 64)), room = (this.size - 20 + 3) / slots - 3;
      for (let slot = 0; slot < slots; slot++) {
        context.fillStyle = slot < node.busy && !bad ? palette.busy : base;
        context.fillRect(x + 10 + slot * (room + 3), y + 28, Math.max(1, room), 8);
      }
    }
    if (at === this.chosen && document.activeElement === this.canvas) this.frame(context, x, y, palette.text, 2);
  }

  frame(context, x, y, colour, width) {
    context.strokeStyle = colour;
    context.lineWidth = width;
    context.strokeRect(x + width / 2, y + width / 2, this.size - width, this.tall - width);
  }

  at(x, y) {
    const column = Math.floor(x / (this.size + this.gap)), row = Math.floor(y / (this.tall + this.gap));
    return column < this.columns ? this.nodes[row * this.columns + column] : undefined;
  }
}

// The stream: a band for each node, as many lanes in it as tasks ran at once there.
export class Stream {
  constructor(canvas, box, space) {
    Object.assign(this, { canvas, box, space, span: 120, end: null, boxes: [] });
    this.lanes = new Map();
    this.commands = new Map();
  }

  colour(command, palette) {
    if (!this.commands.has(command)) {
      if (this.commands.size >= 200) this.commands.clear();
      this.commands.set(command, this.commands.size);
    }
    return palette.commands[this.commands.get(command) % palette.commands.length];
  }

  // Give each run of a node the first lane that is free when it begins.
  arrange(runs) {
    runs.sort((one, other) => one.started - other.started);
    const ends = [];
    for (const run of runs) {
      let lane = ends.findIndex((end) => end <= run.started + 1e-4);
      if (lane < 0) lane = ends.length < 16 ? ends.length : 15;
      ends[lane] = run.finished;
      run.lane = lane;
    }
    return Math.max(1, ends.length);
  }

  draw(byNode, nodes, dirty, now, palette) {
    const key = `${nodes.length} ${byNode.size} ${nodes[0]?.host} ${nodes.at(-1)?.host}`;
    if (this.key !== key) {
      this.key = key;
      this.names = [...new Set([...nodes.map((node) => node.host).filter(Boolean), ...byNode.keys()])].sort(inOrder);
    }
    const names = this.names;
    for (const name of dirty) this.lanes.set(name, this.arrange(byNode.get(name) || []));
    dirty.clear();
    const running = new Map(nodes.map((node) => [node.host, node.running]));
    const needed = (name) => Math.max(this.lanes.get(name) || 1, Math.min(16, (running.get(name) || []).length));
    let total = names.reduce((sum, name) => sum + needed(name), 0);
    const flat = total > 300; // many nodes: one lane for each, whatever ran there at once
    if (flat) total = names.length;
    const count = (name) => (flat ? 1 : needed(name));
    const most = innerWidth < 860 ? 260 : 320;
    this.box.style.height = `${Math.max(110, Math.min(most, total * 19 + names.length * 5 + 30))}px`;
    const lane = Math.max(5, Math.min(18, (this.box.clientHeight - 24) / Math.max(1, total) - 1));
    const tops = [];
    let y = 4;
    for (const name of names) tops.push(y), (y += count(name) * lane + (lane > 6 ? 5 : 2));
    const height = this.box.clientHeight;
    this.space.style.height = `${Math.max(0, y + 20 - height)}px`;
    const [context, width] = prepare(this.canvas, height);
    const left = width > 600 ? 110 : 60, end = this.end ?? now, begin = end - this.span, scroll = this.box.scrollTop;
    const across = (at) => left + ((at - begin) / this.span) * (width - left - 4);
    this.boxes = [];
    this.left = left;
    this.axis(context, begin, end, left, width, height, palette, across);
    const groups = new Map();
    const add = (colour, box) => (groups.has(colour) ? groups.get(colour).push(box) : groups.set(colour, [box]));
    context.textAlign = "right";
    let labelled = -99;
    names.forEach((name, number) => {
      const top = tops[number] - scroll, tall = count(name) * lane;
      if (top + tall < 0 || top > height - 18) return;
      if (top - labelled >= 13 && top > -4) {
        labelled = top;
        context.fillStyle = palette.quiet;
        context.fillText(short(name, left > 80 ? 17 : 8), left - 8, top + Math.max(9, Math.min(tall, 14) - 2));
      }
      for (const run of byNode.get(name) || []) {
        if (run.finished < begin || run.started > end) continue;
        const x = Math.max(left, across(run.started)), w = Math.max(1.5, across(run.finished) - x - (lane > 6 ? 0.5 : 0));
        const box = [x, top + (flat ? 0 : run.lane) * lane, w, lane - (lane > 5 ? 1 : 0.5), run];
        add(run.status === "failed" ? palette.bad : run.status === "cancelled" ? palette.starting : this.colour(run.command, palette), box);
        this.boxes.push(box);
      }
      (running.get(name) || []).slice(0, 16).forEach(([uid, label, command, session, since], at) => {
        const x = Math.max(left, across(since));
        if (since > end || across(Math.min(now, end)) <= x) return;
        const run = { uid, label, command, session, node: name, started: since, finished: now, status: "running", error: "" };
        const box = [x, top + (flat ? 0 : at) * lane, across(Math.min(now, end)) - x, lane - 1, run];
        this.boxes.push(box);
        context.globalAlpha = 0.35;
        context.fillStyle = this.colour(command, palette);
        context.fillRect(box[0], box[1], box[2], box[3]);
        context.globalAlpha = 1;
      });
    });
    for (const [colour, boxes] of groups) {
      context.fillStyle = colour;
      for (const [x, top, w, h] of boxes) context.fillRect(x, top, w, h);
    }
    return names.length;
  }

  axis(context, begin, end, left, width, height, palette, across) {
    context.fillStyle = palette.quiet;
    context.strokeStyle = palette.line;
    context.textAlign = "center";
    const step = [0.1, 0.5, 1, 2, 5, 10, 30, 60, 120, 300].find((each) => this.span / each <= Math.max(2, (width - left) / 90)) || 600;
    for (let at = Math.ceil(begin / step) * step; at <= end; at += step) {
      const x = Math.round(across(at)) + 0.5;
      context.beginPath();
      context.moveTo(x, 0);
      context.lineTo(x, height - 18);
      context.stroke();
      if (x < width - 30 && x > left + 22) context.fillText(new Date(at * 1000).toLocaleTimeString("en-GB"), x, height - 5);
    }
  }

  at(x, y) {
    const near = (box) => x >= box[0] - 2 && x <= box[0] + box[2] + 2 && y >= box[1] && y <= box[1] + box[3];
    return this.boxes.findLast(near)?.[4];
  }
}

export const describe = (run) =>
  `${short(run.label, 60)}  ${run.status}\n${short(run.command, 80)}\n${run.node || "no node"}, ${span(run.finished - run.started)}${run.error ? `\n${short(run.error, 160)}` : ""}`;
