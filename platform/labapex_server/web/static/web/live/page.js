// The live page of a job: draws what `Run` knows, at most once a frame, whenever the feed brings something.

import { Charts } from "./charts.js";
import { Console } from "./console.js";
import { Feed } from "./feed.js";
import { count, credits, duration, figure } from "./format.js";
import { Run } from "./run.js";

const page = document.getElementById("live");
const words = JSON.parse(document.getElementById("words").textContent);
const $ = (name) => page.querySelector(`[data-live="${name}"]`);
const set = (name, text) => { const node = $(name); if (node.textContent !== text) node.textContent = text; };
const run = new Run();
const log = new Console($("console"), $("jump"));
const charts = new Charts(run, { loss: $("loss"), utilisation: $("utilisation"), memory: $("memory") },
  { loss: $("loss-readout"), utilisation: $("utilisation-readout"), memory: $("memory-readout") }, seriesFrame, drawing);
let drawn = { generation: run.generation, losses: -1, samples: -1, handovers: 0, state: null, rules: "" };
let scheduled = false;

// -- drawing -----------------------------------------------------------------------------------------------------------

function draw() {
  scheduled = false;
  const job = run.job;
  if (!job) return;
  if (drawn.generation !== run.generation) {
    charts.restart();
    $("series").replaceChildren();
    log.clear();
    if (drawn.state !== null) log.note("— the job went to another worker and begins again —");
    drawn = { ...drawn, generation: run.generation, losses: -1, samples: -1, handovers: 0, rules: "" };
  }
  if (drawn.handovers !== run.handovers.length) {
    for (const { iteration, after } of run.handovers.slice(drawn.handovers)) log.note(`— ${after} goes on from iteration ${count(iteration)} —`);
    drawn = { ...drawn, handovers: run.handovers.length, losses: -1 };
  }
  if (drawn.losses !== run.next) { drawn.losses = run.next; charts.drawLoss(); }
  if (drawn.samples !== run.samples.length) { drawn.samples = run.samples.length; charts.drawSamples(); }
  $("told").hidden = run.series.size === 0;
  charts.drawSeries();
  log.append(run.takeConsole());
  drawState(job);
  drawFigures(job);
  drawRules();
  page.dataset.points = run.next;
  page.dataset.state = job.state;
}

// One more chart below the others, for a series of the script's own.
function seriesFrame(name) {
  const frame = document.getElementById("series-template").content.firstElementChild.cloneNode(true);
  frame.querySelector("h3").textContent = name;
  frame.dataset.series = name;
  $("series").append(frame);
  const box = frame.querySelector(".plot");
  listen(box);
  return { box, readout: frame.querySelector(".readout") };
}

function drawState(job) {
  const lost = job.lost_contact && !words.ended.includes(job.state);
  const state = words.states[job.state], pill = $("state");
  pill.className = `pill ${lost ? "warn" : state.kind}`;
  set("state", lost ? "lost contact" : state.label);
  set("state-words", lost
    ? "The worker is silent. Training usually goes on there; every point arrives once the line is back. If it stays silent, the job goes to another worker by itself."
    : state.words);
  const reason = $("reason");
  reason.hidden = !job.reason;
  reason.className = `notice ${state.kind === "bad" ? "bad" : state.kind === "good" ? "good" : ""}`;
  set("reason-text", job.reason);
  set("reason-title", job.fault && job.fault !== "nobody" ? `${state.label} · at fault: ${job.fault}` : state.label);
  $("lost").hidden = !lost;
  drawAlerts(job.alerts ?? []);
  $("verdict").hidden = !job.verdict;
  $("resume").hidden = !job.resumable;
  $("stop").hidden = !words.stoppable.includes(job.state);
  set("worker", [job.worker && `on ${job.worker}`, job.device].filter(Boolean).join(" · "));
  if (drawn.state !== job.state) {
    if (drawn.state !== null) document.getElementById("announcer").textContent = `The job is now ${state.label}.`;
    drawn.state = job.state;
    document.title = `${job.name} · ${state.label} · Lab Apex`;
  }
  const device = charts.device();
  if (run.samples.length) {
    set("utilisation-title", `${device} utilisation`);
    set("memory-title", `${device} memory`);
    set("device", run.samples[run.samples.length - 1].device);
  }
}

// Its end is on the page anyway, and lost contact has words of its own above.
function drawAlerts(alerts) {
  const shown = alerts.filter((alert) => !["ended", "lost-contact"].includes(alert.kind));
  const spelling = JSON.stringify(shown);
  if (spelling === drawn.alerts) return;
  drawn.alerts = spelling;
  $("alerts").hidden = shown.length === 0;
  $("alert-list").replaceChildren(...shown.map((alert) => {
    const item = document.createElement("li"), over = alert.recovered_at;
    item.textContent = `${alert.text[0].toUpperCase()}${alert.text.slice(1)}.${over ? ` Over since ${new Date(over * 1000).toLocaleTimeString()}.` : ""}`;
    item.className = over ? "muted" : "";
    return item;
  }));
}

function drawFigures(job) {
  const { iterations, total, epoch, eta_seconds: eta } = job.progress;
  const bar = $("progress");
  bar.max = total ?? 1;
  bar.value = total ? iterations : 0;
  set("iterations", total ? `${count(iterations)} / ${count(total)}` : count(iterations));
  set("percent", total ? `${Math.floor(100 * iterations / total)} %` : "");
  const where = total ? `epoch ${Math.min(epoch, job.spec.epochs)} of ${job.spec.epochs}` : `${job.spec.epochs} epochs`;
  set("eta", words.ended.includes(job.state) || !eta ? where : `${where} · ${duration(eta)} left`);
  const last = run.smooth.length ? run.smooth[run.smooth.length - 1] ?? run.losses[run.losses.length - 1] : null;
  set("last-loss", run.losses.length ? figure(last === null ? null : Number(last.toPrecision(4))) : "–");
  set("first-loss", job.first_loss_seconds === null ? "" : `first loss ${duration(job.first_loss_seconds)} after submit`);
  set("cost", credits(job.cost));
  set("budget", `of ${credits(job.budget)} credits`);
  const money = $("money");
  money.max = Math.max(job.budget, 1);
  money.value = job.cost;
  set("cost-foot", words.ended.includes(job.state) ? `paid ${credits(job.paid)} · back ${credits(job.refunded)}` : "the budget is never passed");
  drawElapsed();
}

function drawElapsed() {
  const job = run.job;
  if (!job) return;
  const until = job.ended_at ?? Date.now() / 1000;
  set("elapsed", job.started_at ? duration(until - job.started_at) : "–");
  set("elapsed-foot", job.started_at ? (job.ended_at ? "from start to verdict" : "since the key was released") : `waiting for ${duration(until - job.created_at)}`);
}

function drawRules() {
  const spelling = JSON.stringify(run.rules);
  if (spelling === drawn.rules) return;
  drawn.rules = spelling;
  $("rules-empty").hidden = run.rules.length > 0;
  const deciding = run.rules.filter((rule) => rule.result !== "not-applicable");
  set("rules-count", run.rules.length ? `${deciding.filter((rule) => rule.result === "pass").length} of ${deciding.length} hold` : "");
  $("rules").replaceChildren(...run.rules.map(ruleItem));
}

function ruleItem(rule) {
  const item = document.getElementById("rule-template").content.firstElementChild.cloneNode(true);
  const fill = (name, text) => { const node = item.querySelector(`.${name}`); node.textContent = text; node.hidden = !text; };
  item.classList.add(rule.result);
  item.dataset.rule = rule.rule;
  fill("mark", { pass: "✓", fail: "✕", "not-applicable": "–" }[rule.result]);
  fill("outcome", { pass: "holds", fail: "fails", "not-applicable": "nothing to look at" }[rule.result]);
  fill("rule-name", rule.rule);
  fill("weight", words.weights[rule.weight]);
  fill("figures", rule.value == null ? "" : rule.limit == null ? figure(rule.value) : `${figure(rule.value)}  ·  limit ${figure(rule.limit)}`);
  fill("words", words.rules[rule.rule] ?? "");
  fill("detail", rule.detail);
  return item;
}

// -- what is asked of the platform besides the feed --------------------------------------------------------------------

// The timeline of commitments is a fragment of the server's; it is fetched again when something may have changed in it.
let timelineDue = 0, timelineTimer;
function refreshTimeline() {
  const wait = Math.max(0, timelineDue - performance.now());
  clearTimeout(timelineTimer);
  timelineTimer = setTimeout(() => {
    timelineDue = performance.now() + 2000;
    document.body.dispatchEvent(new CustomEvent("labapex:changed"));
  }, wait);
}

// The loss as the platform draws it: of a long run a few thousand numbers instead of each point. Null: it does not answer.
async function drawing(first, stop) {
  try {
    const reply = await fetch(`${page.dataset.chart}?first=${first}&stop=${stop}`, { headers: { Accept: "application/json" } });
    return reply.ok ? await reply.json() : null;
  } catch {
    return null; // the feed says it when the platform is away, and brings each point
  }
}

// When each iteration was done, sparsely: it ties the loss chart's cursor to the two charts against time.
let clockDue = 0, clockBusy = false;
async function readClock() {
  if (clockBusy || performance.now() < clockDue) return;
  clockBusy = true;
  const generation = run.generation;
  try {
    const after = run.clock.length ? run.clock[run.clock.length - 1][0] : -1;
    const reply = await fetch(`${page.dataset.clock}?after=${after}`, { headers: { Accept: "application/json" } });
    if (reply.ok && generation === run.generation) run.clock.push(...(await reply.json()).knots);
    clockDue = performance.now() + 3000;
  } catch {
    clockDue = performance.now() + 10000; // the feed says it when the platform is away; the cursor can wait
  } finally {
    clockBusy = false;
  }
}
page.addEventListener("pointerenter", readClock);
function listen(box) {
  box.addEventListener("pointermove", readClock, { passive: true });
  box.addEventListener("focus", readClock);
}
page.querySelectorAll(".plot").forEach(listen);

// -- controls ----------------------------------------------------------------------------------------------------------

$("smoothing").addEventListener("input", (event) => {
  run.setSmoothing(Number(event.target.value));
  set("smoothing-value", Number(event.target.value).toFixed(2));
  charts.drawLoss();
});
$("log").addEventListener("click", (event) => {
  const on = event.currentTarget.getAttribute("aria-pressed") !== "true";
  event.currentTarget.setAttribute("aria-pressed", on);
  charts.loss.setLog(on);
  charts.drawLoss();
});
$("log-x").addEventListener("click", (event) => {
  const on = event.currentTarget.getAttribute("aria-pressed") !== "true";
  event.currentTarget.setAttribute("aria-pressed", on);
  charts.setLogX(on);
});
$("reset").addEventListener("click", () => charts.all((chart) => chart.reset()));
run.setSmoothing(Number($("smoothing").value)); // a reloaded page keeps what its reader had chosen
set("smoothing-value", run.smoothing.toFixed(2));

const connection = {
  connecting: () => "connecting…",
  open: () => "live",
  lost: (seconds) => seconds > 1 ? `connection lost, again in ${seconds} s` : "connection lost, trying again…",
  refused: () => "not available: sign in again or check the address",
};
function fromTheStart() {
  run.cursor = "";
  run.forget();
}
const past = await drawing(0, -1);
if (past) run.adopt(past);
new Feed(page.dataset.feed, {
  query: () => new URLSearchParams({ cursor: run.cursor, have: run.past?.stop ?? 0 }),
  onState: (state, seconds) => {
    $("connection").dataset.state = state;
    set("connection", connection[state](seconds));
  },
  onCursorRefused: fromTheStart,
  onEvents: (events) => {
    if (!run.apply(events)) { // points are missing before these
      fromTheStart();
      return false;
    }
    refreshTimeline();
    if (!scheduled) { scheduled = true; requestAnimationFrame(draw); }
    return true;
  },
});
setInterval(drawElapsed, 1000);
