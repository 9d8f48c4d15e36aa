// The status page: reads the node's event stream and draws what it says. All text goes in as text, never as markup:
// addresses, subjects and replies were written by strangers.
"use strict";

const QUEUE_EVERY_MS = 3000;
const RETRY_MS = 700;
const SILENCE_MS = 4000;
const EVENTS_SHOWN = 60;
const $ = (id) => document.getElementById(id);

let token = sessionStorage.getItem("smtpraft-token") || "";
let last = null;
let lastEvent = 0;
let heardAt = 0;

function el(name, attributes = {}, ...children) {
  const node = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) if (value !== null && value !== undefined) node.setAttribute(key, value);
  node.append(...children.filter((child) => child !== null && child !== undefined).map((child) => (child instanceof Node ? child : String(child))));
  return node;
}
function svg(name, attributes, text) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  if (text !== undefined) node.textContent = text;
  return node;
}
const fill = (id, nodes) => $(id).replaceChildren(...nodes);

// ---- numbers for people ----
const whole = (n) => Math.round(n).toLocaleString("en").replaceAll(",", "\u202f");
const rate = (n) => (n >= 100 ? whole(n) : n >= 10 ? n.toFixed(1) : n.toFixed(n ? 2 : 0));
const ms = (n) => (n === null || n === undefined ? "–" : n === 0 ? "0" : n >= 100 ? whole(n) : n >= 10 ? n.toFixed(1) : n.toFixed(2));
function bytes(n) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let at = 0;
  while (n >= 1024 && at < units.length - 1) { n /= 1024; at++; }
  return `${n >= 100 || at === 0 ? Math.round(n) : n.toFixed(1)} ${units[at]}`;
}
function span(seconds) {
  if (seconds === null || seconds === undefined) return "–";
  const s = Math.max(0, Math.floor(seconds));
  if (s < 60) return `${s} s`;
  if (s < 3600) return `${Math.floor(s / 60)} min ${s % 60} s`;
  if (s < 86400) return `${Math.floor(s / 3600)} h ${Math.floor(s / 60) % 60} min`;
  return `${Math.floor(s / 86400)} d ${Math.floor(s / 3600) % 24} h`;
}
const clock = (time) => new Date(time * 1000).toLocaleTimeString("en-GB");

// ---- the parts ----
function drawVerdict(view) {
  const { cluster, nodes } = view;
  const up = cluster.up, all = nodes.length;
  const troubled = nodes.filter((node) => node.state === "up" && (node.disk !== "ok" || node.abstains || node.draining));
  let tone = "good", text = `Healthy: all ${all} nodes answer`;
  if (all === 1) text = "Healthy: one node, alone";
  if (!cluster.has_quorum) { tone = "bad"; text = `No majority: ${up} of ${all} nodes answer, no mail is taken`; }
  else if (up < all) { tone = "warn"; text = `${all - up} of ${all} nodes ${all - up === 1 ? "is" : "are"} missing; mail is taken`; }
  else if (troubled.length) { tone = "warn"; text = `${troubled.map((node) => node.id).join(", ")} ${troubled.length === 1 ? "needs" : "need"} a look`; }
  const heading = $("verdict");
  heading.className = tone;
  if (heading.textContent !== text) heading.textContent = text;  // spoken only when it changes
  document.title = `${tone === "good" ? "" : "⚠ "}smtpraft · ${up}/${all}`;
  if (cluster.leader_id) {
    const since = cluster.leader_since ? ["for ", el("b", {}, span(view.time - cluster.leader_since)), ", since ", clock(cluster.leader_since)] : [];
    $("leads").replaceChildren(el("b", {}, cluster.leader_id), " leads ", ...since);
  } else $("leads").replaceChildren("Nobody leads: an election is under way");
  const facts = [["Term", whole(cluster.term)], ["Committed", whole(cluster.commit_index)], ["Voters", cluster.voters.length], ["Accepted in all", whole(view.totals.accepted)]];
  fill("facts", facts.map(([name, value]) => el("div", {}, el("dt", {}, name), el("dd", {}, value))));
}
function tile(name, value, unit, note) {
  return el("div", { class: "tile" }, el("p", {}, name), el("strong", {}, value, unit ? el("small", {}, unit) : null), el("p", {}, note));
}
function drawTiles(view) {
  const now = view.history.now, queue = view.queue;
  const waiting = queue.queued + queue.deferred + queue.held;
  fill("tiles", [
    tile("Accepted", rate(now.accepted), "/s", `${rate(now.delivered)} /s delivered`),
    tile("Final dot to 250, p99", ms(now.ack_p99_ms), now.ack_p99_ms === null ? "" : "ms", now.ack_p50_ms === null ? "no mail in the last seconds" : `p50 ${ms(now.ack_p50_ms)} ms`),
    tile("In the queue", whole(waiting), "", `${bytes(queue.bytes)}, ${whole(queue.recipients)} recipients`),
    tile("Oldest message", waiting ? span(queue.oldest_age_s) : "–", "", waiting ? `${whole(queue.deferred)} deferred` : "nothing waits"),
  ]);
}
function nice(top) {
  if (top <= 0) return 1;
  const power = 10 ** Math.floor(Math.log10(top));
  return [1, 2, 2.5, 5, 10].map((step) => step * power).find((step) => step >= top);
}
function drawChart(id, history, series, show, unit) {
  const W = 600, H = 150, L = 44, B = 20, T = 6;
  const values = series.flatMap((one) => one.values).filter((value) => value !== null);
  const top = nice(Math.max(0, ...values) * 1.05);
  const count = series[0].values.length;
  const x = (at) => L + (at / (count - 1)) * (W - L - 2);
  const y = (value) => T + (1 - value / top) * (H - T - B);
  const chart = svg("svg", { class: "chart", viewBox: `0 0 ${W} ${H}`, preserveAspectRatio: "none", role: "img", "aria-label": `${series.map((one) => `${one.name} now ${show(one.now)} ${unit}`).join(", ")}; five minutes` });
  const box = $(id).querySelector(".plot");
  const wide = box.clientWidth || W;
  const labels = [];
  for (const share of [0, 0.5, 1]) {
    chart.append(svg("line", { class: "grid", x1: L, x2: W - 2, y1: y(top * share), y2: y(top * share) }));
    labels.push([L - 8, y(top * share) + 4, show(top * share), "end"]);
  }
  for (let minute = 0; minute <= 5; minute += wide < 420 ? 2 : 1) {
    const at = count - 1 - (minute * 60) / history.step_s;
    labels.push([Math.max(x(Math.max(at, 0)), L), H - 4, minute ? `−${minute} min` : "now", minute ? (minute === 5 ? "start" : "middle") : "end"]);
  }
  series.forEach((one, number) => {
    let path = "", pen = false, first = 0, lastAt = 0;
    one.values.forEach((value, at) => {
      if (value === null) { pen = false; return; }
      path += `${pen ? "L" : "M"}${x(at).toFixed(1)} ${y(value).toFixed(1)}`;
      if (!pen) { path += "h.01"; first = first || at; }  // a lone value is a dot
      pen = true; lastAt = at;
    });
    if (number === 0 && one.area) chart.append(svg("path", { class: "area", d: `${path}L${x(lastAt).toFixed(1)} ${y(0)}L${x(first).toFixed(1)} ${y(0)}Z` }));
    chart.append(svg("path", { class: `s${one.colour}`, d: path }));
  });
  for (const [at, down, text, anchor] of labels) {
    // The drawing is stretched to the card; text is squeezed back.
    const label = svg("text", { x: 0, y: 0, "text-anchor": anchor, transform: `translate(${at} ${down}) scale(${(W / wide).toFixed(4)} 1)` }, text);
    chart.append(label);
  }
  box.replaceChildren(chart);
  $(id).querySelector(".legend").replaceChildren(...series.map((one) => el("li", {}, el("i", { class: `k${one.colour}` }), one.name, " ", el("b", {}, `${show(one.now)}${one.now === null ? "" : unit}`))));
}
function drawCharts(view) {
  const { history } = view, now = history.now;
  drawChart("chart-rate", history, [
    { name: "accepted", colour: 1, values: history.accepted, now: now.accepted, area: true },
    { name: "delivered", colour: 2, values: history.delivered, now: now.delivered },
    { name: "not delivered", colour: 3, values: history.failed, now: now.failed },
  ], rate, "/s");
  drawChart("chart-ack", history, [
    { name: "p50", colour: 1, values: history.ack_p50_ms, now: now.ack_p50_ms },
    { name: "p99", colour: 3, values: history.ack_p99_ms, now: now.ack_p99_ms },
  ], ms, " ms");
}
function role(node) {
  if (node.state === "unreachable") return el("span", { class: "pill bad" }, "unreachable");
  if (node.state === "silent") return el("span", { class: "pill warn" }, "no answer");
  const kind = { leader: "lead", follower: "", learner: "" }[node.role];
  return el("span", { class: `pill ${kind === undefined ? "warn" : kind}` }, node.draining ? "stopping" : node.role);
}
function cells(row, values) {
  const labels = ["", "Role", "Term", "Commit", "Behind", "Sync", "Disk", "Round trip", "Clients", "To deliver", "Up for"];
  row.append(...values.map(([value, number], at) => el("td", { class: number ? "num" : null, "data-label": labels[at] }, value)));
  return row;
}
function drawNodes(view) {
  fill("node-rows", view.nodes.map((node) => {
    const up = node.state === "up";
    const name = el("span", {}, el("b", {}, node.id), node.id === view.node_id ? el("small", {}, " this node") : node.address ? el("small", {}, ` ${node.address}`) : null);
    const row = el("tr", { class: up ? null : "down", "data-node": node.id, "data-state": node.state });
    if (!up) return cells(row, [[name], [role(node)], ["–", 1], ["–", 1], ["–", 1], ["–", 1], ["–"], ["–", 1], ["–", 1], ["–", 1], [node.since ? `lost ${span(view.time - node.since)} ago` : "–"]]);
    const disk = node.disk === "ok" ? el("span", { class: "soft" }, node.size_bytes ? `${Math.round(100 * node.free_bytes / node.size_bytes)} % free` : "ok") : el("span", { class: "pill bad" }, node.disk);
    return cells(row, [
      [name], [role(node)], [whole(node.term), 1], [whole(node.commit_index), 1],
      [node.lag ? whole(node.lag) : "0", 1], [`${ms(node.sync_p50_ms)} / ${ms(node.sync_p99_ms)} ms`, 1], [disk],
      [node.round_trip_ms === null ? "–" : `${ms(node.round_trip_ms)} ms`, 1], [whole(node.connections), 1], [whole(node.owned), 1],
      [node.abstains ? el("span", { class: "pill warn" }, "healing") : !node.lease ? el("span", { class: "pill warn" }, "no lease") : span(node.uptime_s)],
    ]);
  }));
}
function drawQueue(view) {
  const { queue } = view;
  const parts = [["queued", 1], ["deferred", 3], ["held", 2]].map(([state, colour]) => [state, colour, queue[state]]);
  const all = parts.reduce((sum, part) => sum + part[2], 0);
  fill("queue-bar", parts.filter((part) => part[2]).map(([, colour, count]) => {
    const piece = el("i", { class: `k${colour}` });
    piece.style.flex = `${count} 0 0`;
    return piece;
  }));
  $("queue-bar").setAttribute("aria-label", all ? parts.map(([state, , count]) => `${count} ${state}`).join(", ") : "the queue is empty");
  fill("queue-legend", parts.map(([state, colour, count]) => el("li", {}, el("i", { class: `k${colour}` }), state, " ", el("b", {}, whole(count)))));
  fill("destination-rows", view.destinations.length ? view.destinations.map((one) => el("tr", {},
    el("td", { class: "clip", title: one.down || one.name }, one.name, one.down ? el("span", {}, " ", el("span", { class: "pill bad" }, "down")) : null, one.down ? el("div", { class: "soft clip" }, one.down) : null),
    el("td", { class: "num" }, whole(one.waiting)), el("td", { class: "num" }, whole(one.connections)),
  )) : [el("tr", {}, el("td", { class: "none", colspan: 3 }, "Nothing waits."))]);
}
function drawMessages(messages) {
  const now = Date.now() / 1000;
  const cell = (label, attributes, ...content) => el("td", { "data-label": label, ...attributes }, ...content);
  // Who walks through the list by keyboard keeps the place: on the same message, or on the one that is there now.
  const buttons = () => [...$("message-rows").querySelectorAll("button")];
  const place = buttons().indexOf(document.activeElement), held = place < 0 ? "" : document.activeElement.textContent;
  fill("message-rows", messages.length ? messages.map((message) => {
    const button = el("button", { class: "id", type: "button" }, message.id);
    button.addEventListener("click", () => showMessage(message.id));
    const to = message.recipients.map((recipient) => recipient.address);
    return el("tr", {}, cell("", {}, button), cell("State", {}, el("span", { class: `pill ${message.state === "deferred" ? "warn" : ""}` }, message.state)),
      cell("From", { class: "clip", title: message.sender }, message.sender || "<>"),
      cell("To", { class: "clip", title: to.join(", ") }, to[0], to.length > 1 ? ` +${to.length - 1}` : ""),
      cell("Last reply", { class: "clip", title: message.last_reply }, message.last_reply || "–"),
      cell("Size", { class: "num" }, bytes(message.size_bytes)), cell("Age", {}, span(now - message.arrival_time)));
  }) : [el("tr", {}, el("td", { class: "none", colspan: 7 }, "The queue is empty."))]);
  if (place >= 0) {
    const drawn = buttons(), next = drawn.find((button) => button.textContent === held) || drawn[Math.min(place, drawn.length - 1)];
    if (next) next.focus({ preventScroll: true });
  }
}
function drawEvent(event) {
  const tones = { "leader": "lead", "leader-lost": "bad", "peer-lost": "bad", "taken-over": "bad", "peer-up": "good", "delivers": "good" };
  const tone = event.kind === "quorum" ? (event.quorum ? "good" : "bad") : tones[event.kind] || null;
  $("events").prepend(el("li", { "data-kind": event.kind }, el("time", { datetime: new Date(event.time * 1000).toISOString() }, clock(event.time)), el("span", { class: tone }, event.text)));
  while ($("events").children.length > EVENTS_SHOWN) $("events").lastChild.remove();
}
function draw(view) {
  last = view;
  $("me").textContent = view.node_id;
  $("version").textContent = `smtpraft ${view.version}`;
  drawVerdict(view); drawTiles(view); drawCharts(view); drawNodes(view); drawQueue(view);
}

// ---- one message ----
async function showMessage(id) {
  $("message-title").textContent = id;
  $("message-body").replaceChildren(el("p", { class: "none" }, "Asking all nodes…"));
  $("message").showModal();
  const [trace, headers] = await Promise.all([ask(`/v1/queue/${id}/trace`), ask(`/v1/queue/${id}/headers`)]);
  if (!trace) { $("message-body").replaceChildren(el("p", { class: "none" }, "It has left the queue.")); return; }
  const shown = new Map((headers ? headers.headers : []).map(([name, value]) => [name.toLowerCase(), value]));
  const facts = [["Subject", shown.get("subject")], ["From", shown.get("from")], ["Message-ID", shown.get("message-id")], ["Index", whole(trace.index)], ["Synced on", trace.synced_on.join(", ")], ["Owner", trace.message ? trace.message.owner : null]];
  $("message-body").replaceChildren(
    el("dl", { class: "kv" }, ...facts.filter((fact) => fact[1]).flatMap(([name, value]) => [el("dt", {}, name), el("dd", {}, value)])),
    el("h3", {}, "Its life"),
    el("ol", { class: "steps" }, ...trace.steps.map((step) => el("li", {}, el("span", { class: "soft" }, step.time ? new Date(step.time * 1000).toLocaleString("en-GB") : ""), el("b", {}, step.what), el("span", {}, step.node ? `${step.node}: ` : "", step.text)))),
  );
}

// ---- what the node says ----
async function ask(path) {
  try {
    const answer = await fetch(path, { headers: token ? { Authorization: `Bearer ${token}` } : {}, cache: "no-store" });
    if (answer.status === 401) login();
    return answer.ok ? await answer.json() : null;
  } catch { return null; }
}
function live(on, text) {
  $("live").className = `live ${on ? "on" : "off"}`;
  if ($("live").lastElementChild.textContent !== text) $("live").lastElementChild.textContent = text;
}
function login() {
  if (!$("login").open) $("login").showModal();
}
function heard(name, data, id) {
  heardAt = Date.now();
  if (id) lastEvent = Number(id);
  if (name === "overview") { draw(data); live(true, "live"); }
  else if (name === "cluster") drawEvent(data);
}
async function listen() {
  const controller = new AbortController();
  const guard = setInterval(() => { if (Date.now() - heardAt > SILENCE_MS) controller.abort(); }, 500);
  try {
    const answer = await fetch(`/v1/events?topics=cluster,overview&after=${lastEvent}`, { headers: token ? { Authorization: `Bearer ${token}` } : {}, cache: "no-store", signal: controller.signal });
    if (answer.status === 401) { login(); live(false, "a token is needed"); return 0; }
    if (!answer.ok) { live(false, `HTTP ${answer.status}`); return RETRY_MS; }
    heardAt = Date.now();
    const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
    let text = "";
    for (;;) {
      const { value, done } = await reader.read();
      if (done) break;
      text += value;
      const blocks = text.split("\n\n");
      text = blocks.pop();
      for (const block of blocks) {
        const fields = Object.fromEntries(block.split("\n").map((line) => [line.slice(0, line.indexOf(": ")), line.slice(line.indexOf(": ") + 2)]));
        if (fields.data) heard(fields.event, JSON.parse(fields.data), fields.id);
      }
    }
  } catch { /* it is gone: said below */ } finally { clearInterval(guard); }
  live(false, "this node does not answer");
  lastEvent = 0;  // a node that was restarted counts anew
  $("events").replaceChildren();
  return RETRY_MS;
}
async function run() {
  for (;;) {
    heardAt = Date.now();
    const wait = await listen();
    if (wait === 0) return;
    await new Promise((resolve) => setTimeout(resolve, wait));
  }
}
async function watchQueue() {
  if (!document.hidden && !$("login").open) {
    const found = await ask("/v1/queue?linearizable=0&limit=12");
    if (found) drawMessages(found.messages);
  }
  setTimeout(watchQueue, QUEUE_EVERY_MS);
}
$("login-form").addEventListener("submit", () => {
  token = $("token").value.trim();
  sessionStorage.setItem("smtpraft-token", token);
  $("token").value = "";
  run();
});
window.addEventListener("resize", () => { if (last) drawCharts(last); });
run();
watchQueue();
