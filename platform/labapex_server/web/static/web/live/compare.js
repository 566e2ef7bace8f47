// Several runs in one picture: their loss, and each series that any of them tells, over iterations or over time.

import uPlot from "../vendor/uplot/uPlot.esm.js";
import { Chart, ITERATIONS, part, short } from "./chart.js";
import { clock, count, figure } from "./format.js";
import { Run } from "./run.js";

const REFRESH = 5000;
const page = document.getElementById("compare");
const $ = (name) => page.querySelector(`[data-compare="${name}"]`);
const runs = JSON.parse(document.getElementById("runs").textContent).map((job, place) => ({ ...job, place, run: new Run(), told: {} }));
const charts = new Map(); // name -> chart
let byTime = false, logX = false;

// What an address tells; null: the platform does not answer.
async function ask(address) {
  try {
    const reply = await fetch(address, { headers: { Accept: "application/json" } });
    return reply.ok ? await reply.json() : null;
  } catch {
    return null;
  }
}

async function load(each) {
  const [drawing, clockwork, series] = await Promise.all([ask(each.chart), ask(each.clock), ask(each.series)]);
  if (!drawing || !clockwork || !series) return false;
  each.run.forget();
  each.run.smoothing = Number($("smoothing").value);
  each.run.adopt(drawing);
  each.run.clock = clockwork.knots;
  each.told = series;
  return true;
}

// -- what is drawn -----------------------------------------------------------------------------------------------------

// Seconds since a run's first iteration; behind its last known time as fast as it was on average.
function seconds(run, iteration) {
  const knots = run.clock;
  if (!knots.length) return null;
  const [first, begun] = knots[0], [last, ended] = knots[knots.length - 1];
  if (iteration > last) return ended - begun + (last > first ? (iteration - last) * (ended - begun) / (last - first) : 0);
  return iteration <= first ? 0 : run.timeOf(iteration) - begun;
}

// A line as columns of positive x where axes are logarithmic, each x once.
function line(each, x, y, log) {
  const at = [], values = [];
  for (let i = 0; i < x.length; i++) {
    const place = byTime ? seconds(each.run, x[i]) : x[i];
    if (place === null || (logX && place <= 0) || (at.length && place <= at[at.length - 1])) continue;
    at.push(place);
    values.push(log && !(y[i] > 0) ? null : y[i]);
  }
  return [at, values];
}

const lines = (place) => ({ colour: () => `run-${place + 1}`, width: 2, dash: place >= 4 ? [7, 4] : undefined });

function chartOf(name, box, readout) {
  const chart = new Chart(box, {
    label: ([x]) => `${name} of ${runs.length} runs against ${byTime ? "time" : "iterations"}: ${count(x.length)} points. Arrow keys move the cursor, plus and minus zoom, 0 shows all.`,
    series: runs.map((each) => lines(each.place)),
    x: { axis: { ...ITERATIONS.axis, incrs: undefined, values: (_, splits) => splits.map((v) => v === null ? "" : byTime ? clock(v) : count(v)) } },
    y: { format: short },
    readout: (idx) => tell(chart, readout, idx),
    logX,
  });
  chart.onCursor = (at) => { for (const other of charts.values()) if (other !== chart) other.point(at); };
  chart.onZoom = (range) => { for (const other of charts.values()) if (other !== chart) other.follow(range); };
  return chart;
}

// The value of each run at the cursor, or its latest.
function tell(chart, readout, idx) {
  if (!chart?.data) return;
  const [x, ...columns] = chart.data;
  const words = columns.map((column, place) => {
    let at = idx ?? column.length - 1;
    while (at >= 0 && (column[at] ?? null) === null) at -= 1;
    const node = part(runs[place].name, at < 0 ? "–" : figure(Number(column[at].toPrecision(5))), "of-run");
    node.dataset.run = place + 1;
    return node;
  });
  const where = idx === null || !x.length ? [] : [part(byTime ? "after" : "iteration", byTime ? clock(x[idx]) : count(Math.round(x[idx])))];
  readout.replaceChildren(...where, ...words);
}

function figureOf(name) {
  if (charts.has(name)) return charts.get(name);
  const frame = document.getElementById("chart-template").content.firstElementChild.cloneNode(true);
  frame.querySelector("h3").textContent = name;
  frame.dataset.series = name;
  $("series").append(frame);
  charts.set(name, chartOf(name, frame.querySelector(".plot"), frame.querySelector(".readout")));
  return charts.get(name);
}

function join(columns) { return uPlot.join(columns.map(([x, y]) => [x, y])); }

function draw() {
  const loss = charts.get("loss");
  loss.setData(join(runs.map((each) => line(each, each.run.iterations, each.run.smoothing > 0 ? each.run.smooth : each.run.losses, loss.log))));
  const names = [...new Set(runs.flatMap((each) => Object.keys(each.told)))].sort();
  $("told").hidden = names.length === 0;
  for (const name of names) figureOf(name).setData(join(runs.map((each) => line(each, ...(each.told[name] ?? [[], []]), false))));
  page.dataset.drawn = runs.map((each) => each.run.next).join(" ");
}

async function refresh(which) {
  const came = await Promise.all(which.map(load));
  $("problem").hidden = came.every(Boolean); // the next round asks again
  draw();
}

// -- controls ----------------------------------------------------------------------------------------------------------

function every(action) { for (const chart of charts.values()) action(chart); }
$("smoothing").addEventListener("input", (event) => {
  $("smoothing-value").textContent = Number(event.target.value).toFixed(2);
  for (const each of runs) each.run.setSmoothing(Number(event.target.value));
  draw();
});
for (const choice of page.querySelectorAll("[name=over]")) choice.addEventListener("change", () => {
  byTime = choice.value === "time" && choice.checked;
  every((chart) => { chart.zoomed = false; });
  draw();
});
$("log").addEventListener("click", (event) => {
  const on = event.currentTarget.getAttribute("aria-pressed") !== "true";
  event.currentTarget.setAttribute("aria-pressed", on);
  charts.get("loss").setLog(on);
  draw();
});
$("log-x").addEventListener("click", (event) => {
  logX = event.currentTarget.getAttribute("aria-pressed") !== "true";
  event.currentTarget.setAttribute("aria-pressed", logX);
  every((chart) => chart.setLogX(false)); // an axis must not meet points that it cannot show
  if (logX) { draw(); every((chart) => chart.setLogX(true)); }
  draw();
});
$("reset").addEventListener("click", () => every((chart) => chart.reset()));
document.addEventListener("labapex:theme", () => every((chart) => chart.rebuild()));

charts.set("loss", chartOf("Training loss", $("loss"), $("loss-readout")));
await refresh(runs);
const live = runs.filter((each) => !each.ended);
if (live.length) setInterval(() => { if (!document.hidden) refresh(live); }, REFRESH);
