// The page: keeps what the server tells, and shows it. Everything that it keeps is bounded.
import { el, fill, table, state, link, count, rate, span, bytes, clock, plural, short, inOrder } from "./text.js";
import { colours, lines, Grid, Stream, describe } from "./draw.js";

const MOST_RUNS = 20000, KEPT_SECONDS = 900, MOST_ROWS = 50;
const byId = (id) => document.getElementById(id);
const known = { pool: null, control: false, parts: {}, nodes: new Map(), runs: [], byNode: new Map(), uids: new Set(), ahead: 0 };
const dirty = { parts: new Set(), nodes: false, runs: false, lanes: new Set() };
const grid = new Grid(byId("grid")), stream = new Stream(byId("bars"), byId("lanes"), byId("lanes-space"));
let palette = colours(), source = null, retry = null, opened = null;

// ---- the connection

async function begin() {
  link_state("wait", "connecting");
  const named = decodeURIComponent(location.hash.match(/^#pool=(.+)$/)?.[1] ?? "") || known.pool;
  watch(named);
  try {
    const answer = await fetch("pools");
    if (answer.status === 403) return link_state("lost", "the address lacks its token");
    const told = await answer.json();
    if (!answer.ok) throw new Error(told.error);
    known.control = told.control;
    const wanted = known.pool || told.first;
    const names = told.pools.includes(wanted) ? told.pools : [wanted, ...told.pools];
    fill(byId("pool"), ...names.map((name) => el("option", { value: name, selected: name === wanted }, name)));
    known.pool = wanted;
    byId("resize").hidden = !known.control;
  } catch (error) {
    link_state("lost", short(error instanceof TypeError ? "no connection; trying again" : error.message, 90));
    later();
  }
}

function later() {
  clearTimeout(retry);
  retry = setTimeout(begin, 1500);
}

function watch(pool) {
  source?.close();
  if (pool !== known.pool) forget();
  known.pool = pool;
  source = new EventSource(pool ? `events?pool=${encodeURIComponent(pool)}` : "events");
  source.onmessage = (message) => take(JSON.parse(message.data));
  source.onopen = () => link_state("live", "live");
  source.onerror = () => {
    link_state("lost", "connection lost; trying again");
    if (source.readyState === EventSource.CLOSED) later();
  };
}

function link_state(kind, text) {
  const place = byId("link");
  if (place.textContent !== text) place.textContent = text;
  place.dataset.state = kind;
}

function forget() {
  Object.assign(known, { order: null, sorted: null, parts: {}, nodes: new Map(), runs: [], byNode: new Map(), uids: new Set() });
  stream.lanes.clear();
}

function take(told) {
  if (told.fresh) {
    forget();
    known.pool = told.pool;
    document.title = `${told.pool} – batchflow`;
    for (const part of ["now", "series", "explain", "failures", "sessions", "jobs", "queues", "dead", "cost"]) dirty.parts.add(part);
    dirty.nodes = dirty.runs = true;
  }
  for (const [part, value] of Object.entries(told.parts ?? {})) {
    known.parts[part] = value;
    dirty.parts.add(part);
  }
  if (told.parts?.now) known.ahead = told.parts.now.at - Date.now() / 1000;
  if (told.nodes) {
    const { all, some, gone } = told.nodes;
    if (all) known.nodes = new Map(Object.entries(all));
    for (const [id, node] of Object.entries(some ?? {})) {
      if (known.nodes.get(id)?.host !== node.host) known.order = null;
      known.nodes.set(id, node);
    }
    if (all || gone?.length) known.order = null;
    for (const id of gone ?? []) known.nodes.delete(id);
    known.sorted = null;
    dirty.nodes = true;
  }
  if (told.runs) addRuns(told.runs);
  paint();
}

function addRuns(rows) {
  const fresh = [];
  for (const [uid, label, command, session, node, submitted, started, finished, status, error] of rows) {
    if (known.uids.has(uid)) continue;
    const run = { uid, label, command, session, node, submitted, started, finished, status, error, lane: 0 };
    known.uids.add(uid);
    fresh.push(run);
    const of = known.byNode.get(node);
    of ? of.push(run) : known.byNode.set(node, [run]);
    dirty.lanes.add(node);
  }
  // of many runs the newest come first: what is older goes before them, for the latest are at the end
  const older = fresh.length && known.runs.length && fresh.at(-1).finished < known.runs[0].finished;
  known.runs = older ? fresh.concat(known.runs) : known.runs.concat(fresh);
  const before = now() - KEPT_SECONDS;
  if (known.runs.length > MOST_RUNS * 1.1 || (known.runs[0]?.finished ?? before) < before - 60) {
    known.runs.sort((one, other) => one.finished - other.finished);
    known.runs = known.runs.slice(-MOST_RUNS).filter((run) => run.finished >= before);
    known.uids = new Set(known.runs.map((run) => run.uid));
    known.byNode = new Map();
    for (const run of known.runs) known.byNode.has(run.node) ? known.byNode.get(run.node).push(run) : known.byNode.set(run.node, [run]);
    dirty.lanes = new Set(known.byNode.keys());
  }
  dirty.runs = true;
}

const now = () => Date.now() / 1000 + known.ahead;
function nodes() {
  if (!known.order) {
    const named = [...known.nodes.values()].map((node) => [node.host || node.id, node.id]);
    known.order = named.sort((one, other) => inOrder(one[0], other[0])).map(([, id]) => id);
  }
  return (known.sorted ??= known.order.map((id) => known.nodes.get(id)));
}

// ---- painting: what has changed, in the next frame, each part in a turn of its own

let waiting = false;
function paint() {
  if (waiting) return;
  waiting = true;
  requestAnimationFrame(() => {
    waiting = false;
    const parts = [...dirty.parts];
    dirty.parts.clear();
    const turns = [...new Set(parts.map((part) => painters[part]).filter(Boolean))];
    if (dirty.nodes) turns.push(paintGrid, paintNodeTable);
    turns.push(paintStream);
    if (dirty.runs) turns.push(paintTasks, paintLegend);
    dirty.nodes = dirty.runs = false;
    const next = () => {
      turns.shift()?.();
      if (turns.length) setTimeout(next);
    };
    next();
  });
}

const painters = { now: paintFigures, series: paintSeries, explain: paintWhy, failures: paintFailures, sessions: paintSessions, jobs: paintSessions, queues: paintQueues, dead: paintQueues, cost: paintCost };

function paintFigures() {
  const told = known.parts.now;
  if (!told) return;
  const items = [
    ["running", count(told.running), `running in ${plural(told.slots, "slot")}`],
    ["waiting", count(told.waiting), told.held ? `waiting, ${count(told.held)} for other tasks` : "waiting"],
    ["done", count(told.done), "done by the living agents"],
    ["failed", count(told.failed), "of these failed"],
    ["rate", rate(told.rate), "tasks a second"],
    ["nodes", `${count(told.agents)}/${count(told.nodes)}`, told.trouble ? `nodes work, ${count(told.trouble)} in trouble` : "nodes work"],
  ];
  fill(byId("figures"), ...items.map(([name, value, words]) => el("div", { class: `figure ${(name === "failed" && told.failed) || (name === "nodes" && told.trouble) ? "bad" : ""}`, "data-figure": name }, el("b", {}, value), el("span", {}, words))));
  byId("resize").hidden = !known.control;
  paintWhy();
}

function paintSeries() {
  const series = known.parts.series;
  if (!series) return;
  lines(byId("rate"), series, [{ values: series.rate, colour: palette.accent, fill: true }, { values: series.failed, colour: palette.bad }], palette, rate);
  lines(byId("latency"), series, [{ values: series.p99, colour: palette.faint }, { values: series.p50, colour: palette.accent }], palette, span);
  const told = known.parts.now ?? {};
  byId("rate-now").textContent = `now ${rate(told.rate)}; failed in red`;
  byId("latency-now").textContent = `half within ${span(told.p50)}, 99 % within ${span(told.p99)}`;
  byId("rate").setAttribute("aria-label", `Tasks a second in the last 15 minutes; now ${rate(told.rate)}`);
  byId("latency").setAttribute("aria-label", `Seconds from submit to end; half within ${span(told.p50)}, 99 percent within ${span(told.p99)}`);
}

function paintWhy() {
  const place = byId("why"), told = known.parts.explain, problems = known.parts.now?.problems ?? [];
  place.hidden = !told?.causes.length && !problems.length;
  if (place.hidden) return;
  const causes = [...(told?.causes ?? []), ...problems.map((what) => ({ what, remedy: "", severity: "slow" }))];
  place.classList.toggle("blocking", causes.some((cause) => cause.severity === "blocking"));
  const told_text = JSON.stringify([told?.summary, causes]);
  if (place.dataset.told === told_text) return;
  place.dataset.told = told_text;
  fill(place, el("h3", {}, "Why nothing moves"), el("p", {}, told?.summary ?? "Not all services answer."), el("ul", {}, ...causes.map((cause) => el("li", {}, cause.what, cause.remedy ? el("span", { class: "quiet" }, ` ${cause.remedy}`) : null))));
}

function paintGrid() {
  const all = nodes(), busy = all.reduce((sum, node) => sum + node.busy, 0), slots = all.reduce((sum, node) => sum + node.slots, 0);
  const bad = all.filter((node) => node.broken).length;
  byId("nodes-note").textContent = all.length ? `${plural(all.length, "node")}, ${count(busy)} of ${plural(slots, "slot")} busy${bad ? `, ${count(bad)} in trouble` : ""}` : "there is no node yet";
  grid.draw(all, palette);
  byId("grid").setAttribute("aria-label", byId("nodes-note").textContent);
}

function paintNodeTable() {
  if (!byId("nodes-list").open) return;
  const wanted = byId("nodes-filter").value.toLowerCase();
  const order = (node) => (node.broken ? -1e6 : 0) - node.busy;
  const found = nodes().filter((node) => !wanted || `${node.id} ${node.host} ${node.state} ${node.agent} ${node.trouble ?? ""}`.toLowerCase().includes(wanted)).sort((a, b) => order(a) - order(b));
  const heads = [["Node"], ["State"], ["Agent"], ["Kind"], ["Busy", "num"], ["Done", "num"], ["Failed", "num"], ["Load", "num"], ["Memory free", "num"], ["Trouble"]];
  table(byId("nodes-table"), heads, found.slice(0, MOST_ROWS).map((node) => [link(node.host || node.id, () => showNode(node.id)), state(node.state, node.broken ? "broken" : node.state), node.agent ?? "–", node.dedicated ? "dedicated" : "spot", `${node.busy}/${node.slots}`, count(node.done), count(node.failed), node.load?.toFixed(1) ?? "–", bytes(node.memory), node.trouble ?? ""]), "no node is like that");
}

function paintStream() {
  const shown = stream.draw(known.byNode, nodes(), dirty.lanes, now(), palette);
  const dropped = known.parts.now?.dropped;
  byId("stream-note").textContent = `${known.runs.length >= MOST_RUNS ? "the newest " : ""}${plural(known.runs.length, "task")} of the last quarter of an hour on ${plural(shown, "node")}${dropped ? `; ${count(dropped)} more were too many to record` : ""}`;
  byId("bars").setAttribute("aria-label", byId("stream-note").textContent);
}

function paintLegend() {
  const marks = [...stream.commands.keys()].slice(0, 8).map((name) => [name, stream.colour(name, palette)]);
  const items = marks.concat([["failed", palette.bad], ["cancelled", palette.starting]]);
  fill(byId("commands"), ...items.map(([name, colour]) => {
    const mark = el("i");
    mark.style.background = colour;
    return el("li", { title: name }, mark, short(name, 40));
  }));
}

function paintTasks() {
  if (!byId("tasks-list").open) return;
  const last = [...known.runs.slice(-400)].sort((a, b) => b.finished - a.finished).slice(0, 12);
  const heads = [["Task"], ["Command"], ["Session"], ["Node"], ["Ended"], ["Ran", "num"], ["Outcome"], ["Error"]];
  table(byId("tasks-table"), heads, last.map((run) => [link(run.label, () => showTask(run.uid)), run.command, run.session, run.node || "–", clock(run.finished), span(run.finished - run.started), state(run.status), run.error]), "no task has ended in the last quarter of an hour");
}

function paintFailures() {
  const groups = known.parts.failures ?? [], place = byId("failures-body");
  const told = JSON.stringify(groups);
  if (place.dataset.told === told) return;
  place.dataset.told = told;
  if (!groups.length) return fill(place, el("p", { class: "empty" }, "Nothing has failed."));
  fill(place, ...groups.slice(0, 20).map((group) => el("div", { class: "group" }, el("b", {}, count(group.count)), el("span", { class: "text" }, group.text), el("span", { class: "quiet" }, `last ${clock(group.last)}`),
    el("span", { class: "more" }, el("span", {}, group.commands.join(", ")), ...group.examples.slice(0, 5).map(([uid, label]) => link(short(label, 40), () => showTask(uid)))))));
}

function paintSessions() {
  const heads = [["Session"], ["Job"], ["Held by"], ["Waiting", "num"], ["Queued", "num"], ["Running", "num"], ["Succeeded", "num"], ["Failed", "num"], ["Cancelled", "num"]];
  const rows = (known.parts.sessions ?? []).slice(0, 200).map((each) => [each.name, each.job, each.here ? "this program" : each.holder, ...["waiting", "queued", "running", "succeeded", "failed", "cancelled"].map((key) => count((each.counts[key] ?? 0) + (key === "waiting" ? each.counts.sending ?? 0 : 0)))]);
  table(byId("sessions-table"), heads, rows, "no session is open");
  const jobs = known.parts.jobs ?? [];
  byId("jobs-note").textContent = `${plural(jobs.length, "job")}: ${short(jobs.map((job) => (job.state === "open" ? job.name : `${job.name} (${job.state})`)).join(", "), 300)}`;
}

function paintQueues() {
  const heads = [["Queue"], ["For"], ["Messages", "num"], ["Later", "num"], ["Dead", "num"]];
  table(byId("queues-table"), heads, (known.parts.queues ?? []).map((each) => [each.name, each.kind, count(each.active), count(each.scheduled), count(each.dead)]), "not known yet");
  const dead = known.parts.dead ?? [];
  fill(byId("dead-body"), ...dead.slice(0, 50).map((letter) => el("div", { class: "group" }, el("b", {}, count(letter.count)), el("span", { class: "text" }, letter.reason), known.control && letter.count ? el("button", { type: "button", on: { click: () => act({ do: "replay", queue: letter.queue, number: letter.number }) } }, "Run again") : el("span", { class: "quiet" }, clock(letter.at)), el("span", { class: "more" }, ...letter.tasks.slice(0, 5).map(([, label, command]) => el("span", {}, short(`${label}: ${command}`, 80)))))));
}

function paintCost() {
  const told = known.parts.cost;
  if (!told) return fill(byId("cost-body"), el("dt", {}, "not known yet"));
  const money = (value) => (value === null ? null : `${value && value < 0.1 ? Number(value.toPrecision(2)) : value.toFixed(2)} ${told.currency}`);
  const facts = [["So far", money(told.amount) ?? `${told.node_hours.toPrecision(3)} node-hours; no price is known`], ["Node-hours", `${told.dedicated_hours.toFixed(2)} dedicated, ${told.spot_hours.toFixed(2)} spot`], ["Idle", told.idle_share === null ? "–" : `${(told.idle_share * 100).toFixed(0)} %`], ["Tasks", count(told.tasks)], ["For each task", money(told.per_task)], ["To finish", told.remaining ? money(told.to_finish) : null], ["Budget", told.budget]];
  fill(byId("cost-body"), ...facts.filter(([, value]) => value).flatMap(([name, value]) => [el("dt", {}, name), el("dd", {}, value)]));
}

// ---- details

function showPanel(title, ...children) {
  const panel = byId("detail");
  if (panel.hidden) opened = document.activeElement;
  fill(panel, el("div", { class: "head" }, el("h2", {}, title), el("button", { type: "button", on: { click: closePanel } }, "Close")), ...children);
  panel.hidden = false;
  panel.scrollTop = 0;
  panel.focus();
}

function closePanel() {
  byId("detail").hidden = true;
  opened?.focus?.();
}

const facts = (pairs) => el("dl", { class: "facts" }, ...pairs.filter(([, value]) => value !== null && value !== undefined && value !== "").flatMap(([name, value]) => [el("dt", {}, name), el("dd", {}, value)]));
const block = (title, text, kind) => (text ? [el("h3", {}, title), el("pre", { class: kind || null }, text)] : []);

async function showTask(uid) {
  const run = known.runs.findLast((each) => each.uid === uid);
  showPanel(run?.label ?? uid, el("p", { class: "quiet" }, "looking"));
  let told;
  try {
    const answer = await fetch(`task?pool=${encodeURIComponent(known.pool)}&uid=${encodeURIComponent(uid)}`);
    told = await answer.json();
    if (!answer.ok) throw new Error(told.error);
  } catch (error) {
    return showPanel(run?.label ?? uid, el("p", {}, error.message));
  }
  const others = (list) => (list?.length ? el("span", {}, ...list.slice(0, 20).map(([other, label]) => el("span", {}, link(short(label, 40), () => showTask(other)), " "))) : null);
  const parts = [["t0", "waited", told.submitted, told.started], ["t1", "ran", told.started, told.finished], ["t2", "came back", told.finished, told.received]].filter(([, , from, to]) => from && to && to >= from);
  const bars = parts.map(([kind, word, from, to]) => {
    const bar = el("div", { class: kind, title: `${word} ${span(to - from)}` });
    bar.style.flexGrow = String(Math.max(to - from, 1e-6));
    return bar;
  });
  const label = told.task_id, acts = known.control && told.own;
  const live = ["running", "queued", "sending", "waiting"].includes(told.status);
  showPanel(label,
    state(told.status),
    parts.length ? el("div", { class: "times", "aria-hidden": "true" }, ...bars) : null,
    parts.length ? el("p", { class: "quiet" }, parts.map(([, word, from, to]) => `${word} ${span(to - from)}`).join(", ")) : null,
    facts([["Command", told.command], ["Session", `${told.job}/${told.client}`], ["Node", told.node ?? "–"], ["Submitted", clock(told.submitted)], ["Started", clock(told.started)], ["Ended", clock(told.finished)], ["Attempt", told.attempt > 1 ? told.attempt : null], ["Options", told.options], ["Files", told.files?.join(", ")], ["Waits for", others(told.inputs)], ["Waited for by", others(told.consumers)]]),
    acts ? el("div", { class: "acts" }, live ? el("button", { type: "button", on: { click: () => act({ do: "cancel", uid, label }) } }, "Cancel") : el("button", { type: "button", on: { click: () => act({ do: "retry", uid, label }) } }, "Run again")) : null,
    ...block(told.kind ?? "Error", told.error, "bad"), ...block("Traceback", told.traceback, "bad"), ...block("Arguments", told.args), ...block("Value", told.value), ...block("stdout", told.stdout), ...block("stderr", told.stderr),
    ...(told.attempts ?? []).flatMap((each) => block(`Attempt ${each.number} on ${each.node}`, each.error)),
    ...block("Run it here", told.repeat),
    told.own ? null : el("p", { class: "quiet" }, "Only what agents record is known of it here. Its arguments, value and output are with the program that submitted it."));
}

function showNode(id) {
  const node = known.nodes.get(id);
  if (!node) return;
  const running = el("table");
  table(running, [["Task"], ["Command"], ["Since", "num"]], node.running.map(([uid, label, command, , since]) => [link(label, () => showTask(uid)), command, span(now() - since)]), "nothing runs here");
  showPanel(node.host || node.id, state(node.state, node.broken ? "broken" : node.state),
    facts([["Node", node.id], ["Agent", node.agent ?? "none"], ["Kind", node.dedicated ? "dedicated" : "spot"], ["Slots", `${node.busy} of ${node.slots} busy`], ["Done", `${count(node.done)}, ${count(node.failed)} failed`], ["Load", node.load?.toFixed(2)], ["Memory free", bytes(node.memory)], ["Disk free", bytes(node.disk)], ["Trouble", node.trouble]]),
    known.control && node.agent ? el("div", { class: "acts" }, el("button", { type: "button", on: { click: () => act({ do: "drain", node: node.id }) } }, "Drain")) : null,
    el("h3", {}, "Runs now"), running);
}

// ---- control: asked back once

async function post(body) {
  const answer = await fetch("act", { method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify(body) });
  const told = await answer.json();
  if (!answer.ok) throw new Error(told.error);
  return told;
}

async function act(action) {
  try {
    const asked = await post({ pool: known.pool, action });
    const dialog = byId("ask");
    byId("ask-text").textContent = asked.question;
    dialog.returnValue = "no";
    dialog.showModal();
    await new Promise((done) => dialog.addEventListener("close", done, { once: true }));
    if (dialog.returnValue !== "yes") return;
    say((await post({ pool: known.pool, action, answer: asked.answer })).done);
  } catch (error) {
    say(error.message);
  }
}

function say(text) {
  const place = byId("said");
  place.textContent = text;
  place.hidden = false;
  setTimeout(() => (place.hidden = true), 6000);
}

// ---- hands

function tip(event, text) {
  const place = byId("tip");
  place.hidden = !text;
  if (!text) return;
  place.textContent = text;
  place.style.left = `${Math.min(event.clientX + 14, innerWidth - place.offsetWidth - 8)}px`;
  place.style.top = `${Math.min(event.clientY + 14, innerHeight - place.offsetHeight - 8)}px`;
}

const under = (thing, event) => {
  const box = thing.canvas.getBoundingClientRect();
  return thing.at(event.clientX - box.left, event.clientY - box.top);
};
const nodeText = (node) => `${node.host || node.id}\n${node.agent ?? node.state}, ${node.busy} of ${node.slots} busy${node.trouble ? `\n${node.trouble}` : ""}\n${node.running.slice(0, 3).map((each) => `${short(each[1], 30)}: ${short(each[2], 40)} for ${span(now() - each[4])}`).join("\n")}`.trim();
grid.canvas.addEventListener("pointermove", (event) => { const node = under(grid, event); tip(event, node && nodeText(node)); });
grid.canvas.addEventListener("click", (event) => { const node = under(grid, event); if (node) showNode(node.id); });
grid.canvas.addEventListener("keydown", (event) => {
  const step = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -grid.columns, ArrowDown: grid.columns }[event.key];
  if (step) {
    grid.chosen = Math.max(0, Math.min(grid.nodes.length - 1, grid.chosen + (grid.chosen < 0 ? 1 : step)));
    const node = grid.nodes[grid.chosen];
    if (node) grid.canvas.setAttribute("aria-label", nodeText(node));
    event.preventDefault();
    grid.draw(nodes(), palette);
  } else if (event.key === "Enter" && grid.nodes[grid.chosen]) showNode(grid.nodes[grid.chosen].id);
});
stream.canvas.addEventListener("pointermove", (event) => {
  if (stream.drag) {
    const [x, end] = stream.drag;
    stream.moved = stream.moved || Math.abs(event.clientX - x) > 3;
    if (stream.moved) look(end - ((event.clientX - x) / (stream.canvas.clientWidth - stream.left)) * stream.span);
  }
  const run = under(stream, event);
  tip(event, run && !stream.moved ? describe(run) : "");
});
stream.canvas.addEventListener("pointerdown", (event) => { stream.drag = [event.clientX, stream.end ?? now()]; stream.moved = false; });
addEventListener("pointerup", () => (stream.drag = null));
stream.canvas.addEventListener("click", (event) => { const run = under(stream, event); if (run && !stream.moved) showTask(run.uid); });
for (const canvas of [grid.canvas, stream.canvas]) canvas.addEventListener("pointerleave", (event) => tip(event, ""));
byId("lanes").addEventListener("scroll", paint);
byId("lanes").addEventListener("wheel", (event) => {
  if (!event.ctrlKey) return;
  event.preventDefault();
  zoom(stream.span * (event.deltaY > 0 ? 1.25 : 0.8));
}, { passive: false });
byId("lanes").addEventListener("keydown", (event) => {
  const end = stream.end ?? now();
  const work = { ArrowLeft: () => look(end - stream.span / 4), ArrowRight: () => look(end + stream.span / 4), "+": () => zoom(stream.span / 2), "-": () => zoom(stream.span * 2), End: () => look(null) }[event.key];
  if (work) event.preventDefault(), work();
});

function look(end) {
  stream.end = end === null || end >= now() ? null : Math.max(end, now() - KEPT_SECONDS + stream.span / 2);
  byId("live").setAttribute("aria-pressed", String(stream.end === null));
  paint();
}

function zoom(seconds) {
  stream.span = Math.max(0.5, Math.min(KEPT_SECONDS, seconds));
  for (const button of document.querySelectorAll("[data-span]")) button.setAttribute("aria-pressed", String(Number(button.dataset.span) === stream.span));
  paint();
}

for (const button of document.querySelectorAll("[data-span]")) button.addEventListener("click", () => zoom(Number(button.dataset.span)));
byId("live").addEventListener("click", () => look(stream.end === null ? now() - 0.001 : null));
byId("pool").addEventListener("change", (event) => watch(event.target.value));
byId("nodes-filter").addEventListener("input", paintNodeTable);
byId("nodes-list").addEventListener("toggle", paintNodeTable);
byId("tasks-list").addEventListener("toggle", paintTasks);
byId("resize").addEventListener("submit", (event) => { event.preventDefault(); act({ do: "resize", nodes: Number(byId("resize-to").value) }); });
addEventListener("keydown", (event) => { if (event.key === "Escape" && !byId("detail").hidden && !byId("ask").open) closePanel(); });

function again() {
  palette = colours();
  dirty.nodes = dirty.runs = true;
  dirty.parts.add("series");
  paint();
}
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", again);
let sized = null;
addEventListener("resize", () => { clearTimeout(sized); sized = setTimeout(again, 100); });
setInterval(() => { if (!document.hidden && stream.end === null && known.nodes.size) paint(); }, 500);
begin();
